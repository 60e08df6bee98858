// Parallel coordinates, an axis below the other, so that they fit a phone; each keeps the candidates between two handles.
dato.parts.push(() => {
  const section = document.getElementById("parallel");
  if (!section || !dato.explorer) return;
  const { data } = dato.explorer, rows = data.rows, space = "http://www.w3.org/2000/svg", high = 58, top = 30, side = 12;
  const holder = section.querySelector(".axes"), free = section.querySelector("button.free"), kept = section.querySelector(".kept span");
  const draw = (name, attributes, text) => {
    const made = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const ranges = data.axes.map(() => null);
  let width = 0, lines = [], handles = [], bands = [];

  // From a value to its share of the axis; what has no value stands at its end.
  const scales = data.axes.map(axis => {
    const values = rows.map(row => row.values[axis.place]), real = values.filter(v => v !== null);
    const end = real.length < values.length ? 0.86 : 1;
    if (axis.names) {
      const last = Math.max(1, axis.names.length - 1);
      return { to: v => axis.names.indexOf(v) / last, ticks: axis.names.map((name, i) => [i / last, name]), step: 1 / last, text: s => axis.names[Math.round(s * last)], back: s => axis.names[Math.round(s * last)] };
    }
    const bend = axis.log ? Math.log : v => v, back = axis.log ? Math.exp : v => v;
    const low = bend(Math.min(...real)), span = bend(Math.max(...real)) - low;
    const text = v => (axis.percent ? `${(100 * v).toFixed(0)} %` : v.toFixed(axis.digits)) + (axis.unit || "");
    const to = v => v === null ? 1 : span ? end * (bend(v) - low) / span : 0;
    const marks = real.length === 0 ? [] : span ? [0, 0.5, 1] : [0];
    const seen = new Set(), ticks = marks.map(m => [m * end, text(back(low + m * span))]).filter(([, t]) => !seen.has(t) && seen.add(t));
    if (end < 1) ticks.push([1, "none"]);
    const value = s => end < 1 && s > (1 + end) / 2 ? null : back(low + Math.min(s / end, 1) * span);
    return { to, ticks, step: 1 / 40, back: value, text: s => end < 1 && s > (1 + end) / 2 ? "none" : text(back(low + Math.min(s / end, 1) * span)) };
  });
  const shares = rows.map(row => data.axes.map((axis, i) => scales[i].to(row.values[axis.place])));
  const x = share => side + share * (width - 2 * side), y = axis => top + axis * high;
  const isKept = index => ranges.every((range, i) => !range || (shares[index][i] >= range[0] - 1e-6 && shares[index][i] <= range[1] + 1e-6));

  function build() {
    width = holder.clientWidth;
    const svg = draw("svg", { width, height: top + (data.axes.length - 1) * high + 34, role: "group", "aria-label": "parallel coordinates of the candidates' genes" });
    const body = draw("g", { fill: "none" });
    // The chosen groups are drawn last, and so on top.
    const order = rows.map((_, i) => i).sort((a, b) => Object.keys(data.groups).indexOf(rows[b].group) - Object.keys(data.groups).indexOf(rows[a].group));
    lines = [];
    order.forEach(i => {
      const points = shares[i].map((s, axis) => `${x(s).toFixed(1)},${y(axis)}`).join(" ");
      lines[i] = draw("polyline", { points, stroke: data.groups[rows[i].group] });
      body.append(lines[i]);
    });
    svg.append(body);
    handles = []; bands = [];
    data.axes.forEach((axis, i) => {
      svg.append(draw("line", { x1: x(0), x2: x(1), y1: y(i), y2: y(i), class: "axis" }), draw("text", { x: side, y: y(i) - 10, class: "title" }, axis.title));
      scales[i].ticks.forEach(([share, text]) => {
        const anchor = share > 0.9 ? "end" : share < 0.1 ? "start" : "middle";
        svg.append(draw("text", { x: x(share), y: y(i) + 16, class: "tick", "text-anchor": anchor }, text));
      });
      bands[i] = draw("rect", { y: y(i) - 5, height: 10, class: "band" });
      svg.append(bands[i]);
      const catcher = draw("rect", { x: 0, width, y: y(i) - 14, height: 28, class: "catcher" });
      svg.append(catcher);
      drag(catcher, i);
      handles[i] = [0, 1].map(end => {
        const handle = draw("rect", { y: y(i) - 9, width: 7, height: 18, rx: 2, tabindex: 0, role: "slider", class: "handle", "aria-label": `${axis.title}, ${end ? "upper" : "lower"} end`, "aria-valuemin": 0, "aria-valuemax": 100 });
        handle.addEventListener("keydown", event => move(event, i, end));
        svg.append(handle);
        return handle;
      });
    });
    svg.addEventListener("click", event => {
      if (event.target.closest(".catcher, .handle")) return;
      const box = svg.getBoundingClientRect(), px = event.clientX - box.left, place = Math.min(data.axes.length - 1, Math.max(0, (event.clientY - box.top - top) / high));
      const above = Math.min(Math.floor(place), data.axes.length - 2), part = place - above;
      let best = [14, -1];
      shares.forEach((s, i) => { const d = Math.abs(x(s[above] + part * (s[above + 1] - s[above])) - px); if (isKept(i) && d < best[0]) best = [d, i] });
      if (best[1] >= 0) dato.explorer.choose(rows[best[1]].key);
    });
    holder.replaceChildren(svg);
    paint();
  }

  function drag(catcher, i) {
    let from = null;
    const at = event => Math.min(1, Math.max(0, (event.clientX - holder.getBoundingClientRect().left - side) / (width - 2 * side)));
    catcher.addEventListener("pointerdown", event => { from = at(event); catcher.setPointerCapture(event.pointerId) });
    catcher.addEventListener("pointermove", event => {
      if (from === null || Math.abs(at(event) - from) < 0.01) return;
      ranges[i] = [Math.min(from, at(event)), Math.max(from, at(event))];
      paint();
    });
    catcher.addEventListener("pointerup", event => { if (from !== null && Math.abs(at(event) - from) < 0.01) { ranges[i] = null; paint() } from = null; keepInFront() });
    catcher.addEventListener("pointercancel", () => { from = null });
  }

  function move(event, i, end) {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -1e9, End: 1e9 }[event.key];
    if (!by && event.key !== "Escape") return;
    event.preventDefault();
    const range = ranges[i] || [0, 1];
    if (by) range[end] = Math.min(end ? 1 : range[1], Math.max(end ? range[0] : 0, range[end] + by * scales[i].step));
    ranges[i] = !by || (range[0] <= 1e-6 && range[1] >= 1 - 1e-6) ? null : [...range];
    paint();
    keepInFront();
  }

  function paint() {
    const chosen = dato.explorer.chosen(), some = ranges.some(Boolean);
    let count = 0;
    rows.forEach((row, i) => {
      const there = isKept(i);
      count += there;
      const strong = row.key === (dato.pointed || chosen);
      lines[i].setAttribute("class", (there ? row.group : "out") + (strong ? " chosen" : ""));
      lines[i].setAttribute("stroke", strong ? data.chosen : data.groups[row.group]);
    });
    ranges.forEach((range, i) => {
      const [low, high_] = range || [0, 1];
      bands[i].setAttribute("x", x(low)); bands[i].setAttribute("width", Math.max(2, x(high_) - x(low))); bands[i].classList.toggle("set", !!range);
      [low, high_].forEach((share, end) => {
        handles[i][end].setAttribute("x", x(share) - (end ? 0 : 7));
        handles[i][end].setAttribute("aria-valuenow", Math.round(100 * share)); handles[i][end].setAttribute("aria-valuetext", scales[i].text(share));
      });
    });
    free.hidden = !some;
    const limits = ranges.map((r, i) => r && `${data.axes[i].title} ${scales[i].text(r[0])} to ${scales[i].text(r[1])}`).filter(Boolean).join("; ");
    kept.textContent = some ? `${count} of ${rows.length} kept: ${limits}.` : `${rows.length} strategies: green winners, blue the front, orange rivals, grey all others.`;
  }

  // The front's figure shows the same ones: the others fade.
  function keepInFront() {
    const front = document.getElementById("front");
    if (!front || !front.data) return;
    const there = new Set(rows.filter((_, i) => isKept(i)).map(row => row.key)), some = ranges.some(Boolean), selected = [], traces = [];
    front.data.forEach((trace, index) => {
      if (!trace.customdata || !(trace.mode || "").includes("markers")) return;
      traces.push(index);
      selected.push(some ? trace.customdata.map((d, k) => there.has(d.key) ? k : -1).filter(k => k >= 0) : null);
    });
    if (traces.length) Plotly.restyle(front, { selectedpoints: selected }, traces);
  }

  free.onclick = () => { ranges.fill(null); paint(); keepInFront() };
  dato.chosenChanged = key => { dato.pointed = key; paint() };
  // As values, since new candidates move the ends of an axis.
  dato.parallel = {
    ranges: () => ranges.map((r, i) => r && r.map((share, end) => share === end ? undefined : scales[i].back(share))),
    keep(given) {
      given.forEach((r, i) => { if (r && i < ranges.length) ranges[i] = r.map((v, end) => { const share = v === undefined ? end : scales[i].to(v); return share >= 0 ? Math.min(1, share) : end }) });
      paint(); keepInFront();
    },
  };
  build();
  new ResizeObserver(() => { if (holder.clientWidth && holder.clientWidth !== width) build() }).observe(holder);
});
