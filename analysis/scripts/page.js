// What every page has: copying, and names of points that stand where there is room. `dato.parts` holds what starts with the page's content, anew for new content.
window.dato = { parts: [], start() { this.parts.forEach(part => part()) } };

dato.copy = (button, text, from) => {
  const done = word => { button.textContent = word };
  // A page opened from a file has no clipboard in some browsers: the text is selected instead.
  const select = () => { if (from) { getSelection().selectAllChildren(from); done("selected") } else done("not possible here") };
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => done("copied"), select); else select();
};

dato.parts.push(() => document.querySelectorAll("button.copy").forEach(button => {
  button.onclick = () => dato.copy(button, button.nextElementSibling.innerText, button.nextElementSibling);
}));

const wrapped = (name, width) => name.split(/<br>| /).reduce((lines, word) => {
  const last = lines[lines.length - 1];
  return last && last.length + word.length < width ? [...lines.slice(0, -1), `${last} ${word}`] : [...lines, word];
}, []).join("<br>");

// Names beside points: each at the first side where it meets no other name, no point and no edge; where there is none it is left to the hover text and the tables.
dato.placeNames = figure => {
  const layout = figure._fullLayout, traces = figure.data.map((trace, index) => ({ trace, index })).filter(t => t.trace.meta === "named");
  if (!layout || !traces.length) return;
  const { xaxis, yaxis } = layout, size = layout.font.size, pen = document.createElement("canvas").getContext("2d");
  pen.font = `${size}px system-ui, sans-serif`;
  const at = (x, y) => [xaxis.d2p(x), yaxis.d2p(y)];
  const taken = [];
  figure.data.forEach(trace => {
    if (trace.visible === "legendonly" || !trace.x) return;
    for (let i = 0; i < trace.x.length; i++) { const [x, y] = at(trace.x[i], trace.y[i]); if (isFinite(x + y)) taken.push([x - 4, y - 4, x + 4, y + 4]) }
    const bar = trace.error_y && trace.error_y.array && trace.error_y.array[0];
    if (bar) { const [x, high] = at(trace.x[0], trace.y[0] + bar), [, low] = at(trace.x[0], trace.y[0] - bar); taken.push([x - 2, high, x + 2, low]) }
  });
  const sides = { "top right": [1, -1], "top left": [-1, -1], "bottom right": [1, 1], "bottom left": [-1, 1], "middle right": [1, 0], "middle left": [-1, 0], "top center": [0, -1], "bottom center": [0, 1] };
  const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const positions = [], texts = [], indices = [];
  traces.forEach(({ trace, index }) => {
    const name = trace.customdata[0].name;
    const [x, y] = at(trace.x[0], trace.y[0]), gap = 9, own = [x - 4, y - 4, x + 4, y + 4];
    const box = (text, [dx, dy]) => {
      const lines = text.split("<br>"), width = Math.max(...lines.map(l => pen.measureText(l).width)) + 4, height = lines.length * size * 1.3;
      const left = dx > 0 ? x + gap : dx < 0 ? x - gap - width : x - width / 2, top = dy > 0 ? y + gap : dy < 0 ? y - gap - height : y - height / 2;
      return [left, top, left + width, top + height];
    };
    // In a narrow figure there may be room for a name in more lines.
    const ways = [name, wrapped(name, 12)].flatMap(text => Object.entries(sides).map(([side, shift]) => [side, shift, text]));
    const free = ways.find(([, side, text]) => {
      const b = box(text, side);
      return b[0] >= 0 && b[2] <= xaxis._length && b[1] >= -4 && b[3] <= yaxis._length && !taken.some(t => meets(b, t) && !(t.every((v, i) => Math.abs(v - own[i]) < 1)));
    });
    indices.push(index);
    if (free) taken.push(box(free[2], free[1]));
    positions.push(free ? free[0] : "top right");
    texts.push([free ? free[2] : ""]);
  });
  Plotly.restyle(figure, { textposition: positions, text: texts }, indices);
};

// Where a figure is narrow, each name of its legend takes a row of its own below: it is higher then, so that as much is left for what is drawn.
dato.makeRoom = figure => {
  const legend = figure._fullLayout?.legend, names = figure.data.filter(t => t.showlegend !== false && t.name).length, rows = Math.max(0, names - 4);
  if (!legend || legend.y > 0 || !rows) return;
  figure.dataset.high ??= figure._fullLayout.height;
  const height = +figure.dataset.high + (figure.clientWidth < 600 ? 20 * rows : 0);
  if (height === figure._fullLayout.height) return;
  figure.parentElement.style.height = `${height}px`; // which holds it
  Plotly.relayout(figure, { height });
};

dato.parts.push(() => {
  document.querySelectorAll(".js-plotly-plot").forEach(figure => {
    dato.makeRoom(figure);
    const place = () => requestAnimationFrame(() => dato.placeNames(figure));
    place();
    figure.on("plotly_relayout", place);
  });
});
let resized;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => document.querySelectorAll(".js-plotly-plot").forEach(figure => { dato.makeRoom(figure); dato.placeNames(figure) }), 300) });
