// What may stand at a place of a study's YAML, from the JSON schema: keys of the mapping there, or words for the key.

/** `{words, from, kind}`: suggestions for the text between `from` and the caret; null where nothing is known. */
export function complete(text, caret, schema) {
  const start = text.lastIndexOf("\n", caret - 1) + 1;
  const line = text.slice(start, caret);
  const typed = /[\w.-]*$/.exec(line)[0];
  const before = line.slice(0, line.length - typed.length);
  const lines = text.slice(0, start).split("\n").slice(0, -1);
  const { path, siblings } = parents(lines, before, text.slice(start));
  const value = /(?:^|[{,\s-])([\w.]+):\s+$/.exec(before) ?? /(?:^|[{,\s-])([\w.]+):\s*\[?(?:[\w.]+,\s*)*$/.exec(before);
  const nodes = resolve(schema, path, schema, siblings);
  const inside = value && !/[{,]\s*$/.test(before.replace(/\[[^\]]*$/, "["));
  const words = inside ? wordsOf(nodes, value[1], schema) : keysOf(nodes, siblings, schema);
  const found = words.filter((word) => word.text.startsWith(typed) && word.text !== typed);
  return found.length ? { words: found, from: caret - typed.length, isKey: !inside } : null;
}

/** The keys that lead to the mapping of the caret, and what is said beside it (for `kind`, `source`, `type`, `name`). */
function parents(lines, before, here) {
  const path = [];
  const siblings = {};
  let indent = before.search(/\S/);
  if (indent < 0) indent = before.length;
  const dash = /^\s*-\s+/.exec(before);
  const flow = [...before.matchAll(/([\w.]+):\s*\{/g)].slice(-(before.split("{").length - before.split("}").length) || undefined);
  const open = before.split("{").length > before.split("}").length;
  if (open) path.unshift(...flow.map((match) => match[1]));
  for (const [, key, value] of (open ? here : "").matchAll(/([\w.]+):\s*([\w.]+)/g)) siblings[key] ??= value;
  if (dash && open && !flow.length) path.unshift("-");
  let level = dash ? dash[0].length - (dash[0].length - before.search(/-/)) : indent;
  if (dash && !open) path.unshift("-");
  for (let i = lines.length - 1; i >= 0 && level >= 0; i -= 1) {
    const row = lines[i];
    if (/^\s*(#|$)/.test(row)) continue;
    const depth = row.search(/\S/);
    const match = /^\s*(-\s+)?([\w.]+):\s*([^#]*)/.exec(row);
    if (depth === level && match && !open) siblings[match[2]] ??= match[3].trim();
    if (depth < level && match) {
      if (match[1] && depth + match[1].length >= level) {
        path.unshift("-");
        siblings[match[2]] ??= match[3].trim();
      } else path.unshift(match[2]);
      level = depth;
    }
  }
  return { path, siblings };
}

function resolve(node, path, schema, siblings) {
  let nodes = variants(node, schema, path.length ? {} : siblings);
  path.forEach((part, i) => {
    const next = nodes.flatMap((each) => child(each, part));
    nodes = next.flatMap((each) => variants(each, schema, i === path.length - 1 ? siblings : {}));
  });
  return nodes;
}

function child(node, part) {
  if (part === "-") return node.items ? [node.items] : [];
  const found = node.properties?.[part] ?? node.additionalProperties;
  return found && typeof found === "object" ? [found] : [];
}

/** A schema without references and unions; of a union only what fits the word that tells its members apart. */
function variants(node, schema, siblings) {
  if (!node) return [];
  if (node.$ref) return variants(schema.$defs[node.$ref.split("/").at(-1)], schema, siblings);
  const several = node.oneOf ?? node.anyOf ?? node.allOf;
  if (!several) return [node];
  const all = several.flatMap((each) => variants(each, schema, siblings));
  const tag = node.discriminator?.propertyName;
  const fitting = all.filter((each) => tag && siblings[tag] && each.properties?.[tag]?.const === siblings[tag]);
  return fitting.length ? fitting : all;
}

function keysOf(nodes, siblings, schema) {
  const found = new Map();
  for (const node of nodes) {
    for (const [name, property] of Object.entries(node.properties ?? {})) {
      if (!(name in siblings)) found.set(name, hint(property, schema));
    }
  }
  return [...found].map(([text, about]) => ({ text, about }));
}

function wordsOf(nodes, key, schema) {
  const found = new Set();
  for (const node of nodes.flatMap((each) => child(each, key)).flatMap((each) => variants(each, schema, {}))) {
    for (const each of [node, ...variants(node.items, schema, {})]) {
      for (const word of each.enum ?? (each.const === undefined ? [] : [each.const])) found.add(String(word));
      if (each.type === "boolean") ["true", "false"].forEach((word) => found.add(word));
      const tag = each.properties?.kind ?? each.properties?.source;
      if (tag?.const !== undefined) found.add(`{${each.properties.kind ? "kind" : "source"}: ${tag.const}}`);
    }
  }
  return [...found].map((text) => ({ text, about: "" }));
}

function hint(property, schema) {
  const [first] = variants(property, schema, {});
  const said = property.description ?? first?.description ?? "";
  const fallback = property.default === undefined || property.default === null ? "" : `default ${JSON.stringify(property.default)}`;
  return fallback.length && fallback.length < 30 ? fallback : said.split("\n")[0].slice(0, 60);
}
