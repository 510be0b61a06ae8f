// The options are those of plotly.js's own esbuild-config.js, without the style sheet of geographic maps.
import { createHash } from "node:crypto";
import { copyFileSync, readFileSync } from "node:fs";
import { build } from "esbuild";
import { environmentPlugin } from "esbuild-plugin-environment";
import { glsl } from "esbuild-plugin-glsl";

const target = "../../api/hpsearch_api/pages/static/plotly";
const { version } = JSON.parse(readFileSync("node_modules/plotly.js/package.json"));

await build({
  entryPoints: ["traces.js"],
  outfile: `${target}/plotly.min.js`,
  format: "iife",
  globalName: "Plotly",
  bundle: true,
  minify: true,
  target: "es2022",
  legalComments: "inline",
  banner: { js: `/* plotly.js ${version}, MIT, Copyright Plotly, Inc.: core, bar, contour, scattergl (strict) */` },
  alias: { regl: "@plotly/regl", stream: "stream-browserify" },
  define: { global: "window", "define.amd": "false" },
  loader: { ".css": "empty" },
  plugins: [glsl({ minify: true }), environmentPlugin({ NODE_DEBUG: false })],
});
copyFileSync("node_modules/plotly.js/LICENSE", `${target}/LICENSE`);
const sum = createHash("sha256").update(readFileSync(`${target}/plotly.min.js`)).digest("hex");
console.log(`${sum}  plotly.min.js of plotly.js ${version}`);
