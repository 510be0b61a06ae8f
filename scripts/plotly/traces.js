// What the figures of hpsearch consist of. Lines and points (scatter) are in the core. The points with WebGL are of the
// strict kind: their shaders' code was generated beforehand, so that no `unsafe-eval` is needed.
const Plotly = require("plotly.js/lib/core");

Plotly.register([
  require("plotly.js/lib/bar"),
  require("plotly.js/lib/contour"),
  require("plotly.js/src/traces/scattergl/strict"),
]);
module.exports = Plotly;
