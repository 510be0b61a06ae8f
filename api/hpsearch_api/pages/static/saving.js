// A figure as a file: a picture as it is shown, or its points as CSV.

/** Save a figure in a form: png, svg or csv. */
export async function save({ area, element }, form) {
  const filename = element.dataset.name.replaceAll(/[^\w.-]+/g, "-");
  if (form !== "csv") {
    const { offsetWidth: width, offsetHeight: height } = area;
    const paper = getComputedStyle(element).backgroundColor;
    const { data, layout } = area;
    const picture = { data, layout: { ...layout, paper_bgcolor: paper, plot_bgcolor: paper } };
    const url = await Plotly.toImage(picture, { format: form, width, height, scale: form === "png" ? 2 : 1 });
    download(url, `${filename}.${form}`);
    return;
  }
  const rows = [["series", "trial", "x", "y"]];
  for (const trace of area._fullData ?? []) {
    const n = Math.max(trace.x?.length ?? 0, trace.y?.length ?? 0);
    for (let i = 0; i < n; i += 1) {
      if (trace.x[i] === null || trace.y[i] === null) continue;
      rows.push([trace.name, trace.customdata?.[i]?.[0], trace.x[i], trace.y[i]]);
    }
  }
  const url = URL.createObjectURL(new Blob([rows.map((row) => row.map(cell).join()).join("\n") + "\n"], { type: "text/csv" }));
  download(url, `${filename}.csv`);
  URL.revokeObjectURL(url);
}

/** A cell of CSV; text that a spreadsheet would take for a formula is quoted out of that. */
function cell(value) {
  if (value === undefined || value === null) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function download(url, filename) {
  const link = document.createElement("a");
  link.href = url;
  link.download = filename;
  link.click();
}
