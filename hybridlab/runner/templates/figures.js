// Draws every figure of the page from the data beside it, in the page's colours.
(function () {
  "use strict";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 42rem)");

  // A title in lines that a phone is wide enough for.
  function wrapped(text, room) {
    const lines = [""];
    for (const word of text.split(/\s+/)) {
      const line = lines[lines.length - 1];
      if (line && line.length + word.length >= room) lines.push(word);
      else lines[lines.length - 1] = line ? line + " " + word : word;
    }
    return lines;
  }

  // On a phone: the title in several lines, the legend under everything else.
  function fitted(out) {
    const title = typeof out.title === "string" ? { text: out.title } : out.title || {};
    const lines = wrapped((title.text || "").replace(/<br ?\/?>/g, " "), Math.floor(window.innerWidth / 9.5));
    out.title = Object.assign({}, title, { text: lines.join("<br>"), font: { size: 14 }, x: 0, xref: "container", y: 0.96, yref: "container", yanchor: "top" });
    out.margin = Object.assign({}, out.margin, { t: 34 + 19 * lines.length, l: 40, r: 10 });
    out.legend = Object.assign({}, out.legend, { orientation: "h", x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom", font: { size: 11 } });
    return out;
  }

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
    const place = document.getElementById(script.dataset.figure);
    if (figure.data.some((trace) => trace.type === "sankey")) {  // its words need room: it is scrolled on a phone
      place.classList.add("wide");
      place.parentElement.tabIndex = 0;
    }
    const config = { responsive: true, displaylogo: false, displayModeBar: !narrow.matches, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
    return Plotly.react(script.dataset.figure, figure.data, narrow.matches ? fitted(themed(figure.layout)) : themed(figure.layout), config);
  }

  function all() { document.querySelectorAll("script[data-figure]").forEach(draw); }
  all();
  for (const query of [dark, narrow]) query.addEventListener("change", all);
})();
