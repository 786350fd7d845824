// Draws every figure of the page from the data beside it, in the page's colours.
(function () {
  "use strict";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
    const out = Object.assign({}, layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true });
    delete out.width;
    out.font = Object.assign({}, layout.font, { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily });
    if (!layout.colorway) out.colorway = ["--arm", "--amd", "--num", "--fn", "--bad", "--soft"].map(colour);
    for (const key of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((k) => /^[xy]axis\d*$/.test(k))])) {
      out[key] = Object.assign({}, layout[key], axis);
    }
    return out;
  }

  function draw(script) {
    const figure = JSON.parse(script.textContent);
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
    return Plotly.react(script.dataset.figure, figure.data, themed(figure.layout), config);
  }

  function all() { document.querySelectorAll("script[data-figure]").forEach(draw); }
  all();
  dark.addEventListener("change", all);
})();
