// The strategy that was chosen, in the list or on the figure of the front, in full.
dato.parts.push(() => {
  const section = document.getElementById("explorer"), holder = document.getElementById("explorer-data");
  if (!section || !holder) return;
  const data = JSON.parse(holder.textContent), rows = new Map(data.rows.map(row => [row.key, row]));
  const list = section.querySelector("select"), shown = section.querySelector(".shown"), front = document.getElementById("front");
  for (const option of list.options) option.textContent = rows.get(option.value).label;
  const make = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  let marker = null;

  function schedule(row) {
    const cells = row.run.map((number, place) => {
      const step = data.steps[number], colour = data.depths[step.depth].colour;
      const half = there => make("i", { style: there ? `background:${colour}` : "" });
      return make("div", { class: "cell", title: `step ${place + 1}: ${step.words}` },
        make("span", { class: "halves" }, half(true), half(!step.alone), make("b", {}, "+".repeat(step.order))),
        make("span", { class: "ratio" }, make("i", { style: `height:${step.ratio * 100}%` })));
    });
    const steps = row.run.map(number => data.steps[number]);
    const key = Object.entries(data.depths).filter(([depth]) => steps.some(s => s.depth === +depth)).reverse()
      .map(([, depth]) => make("span", { class: "key" }, make("i", { style: `background:${depth.colour}` }), depth.name));
    const said = [
      steps.some(s => s.alone) ? "half a cell: the conditional half of guidance alone" : "",
      steps.some(s => s.order) ? "+: what is reused is extrapolated, a sign for each order" : "",
      steps.some(s => s.ratio) ? "below: share of the tokens that are pruned" : "nothing is pruned",
    ].filter(Boolean).join("; ");
    const stretches = [];
    row.run.forEach((number, place) => {
      const last = stretches[stretches.length - 1];
      if (last && last.number === number) last.to = place + 1; else stretches.push({ number, from: place + 1, to: place + 1 });
    });
    const words = stretches.map(s => make("li", {}, `${s.from === s.to ? `step ${s.from}` : `steps ${s.from} to ${s.to}`}: ${data.steps[s.number].words}`));
    return [
      make("p", { class: "what" }, row.what),
      make("div", { class: "schedule", role: "img", "aria-label": `schedule of ${row.run.length} steps, in words below`, style: `grid-template-columns:repeat(${row.run.length},minmax(0,1fr))` }, ...cells),
      make("p", { class: "keys" }, ...key, make("span", {}, `first step on the left; ${said}`)),
      make("details", { "data-keep": "steps" }, make("summary", {}, "each step in words"), make("ul", {}, ...words)),
    ];
  }

  function images(row) {
    const find = label => [...document.querySelectorAll(".grid img[data-label]")].find(img => img.dataset.label === label);
    const found = row.images && find(row.images), plain = row.images !== "unaccelerated" && find("unaccelerated");
    if (!found) return [make("p", { class: "none" }, row.no_images || "")];
    const line = (label, img) => [make("div", {}, label), make("img", { alt: `images of ${label}`, src: img.src })];
    return [make("div", { class: "grid few" }, ...line("this one", found), ...(plain ? line("unaccelerated", plain) : []))];
  }

  function use(row) {
    const code = make("pre", {}, row.code.join("\n")), copy = make("button", { type: "button" }, "copy the code");
    copy.onclick = () => dato.copy(copy, row.code.join("\n"), code);
    if (!row.json) return [make("p", { class: "buttons" }, copy), code];
    const text = make("pre", {}, row.json), whole = make("details", { "data-keep": "json" }, make("summary", {}, "its JSON"), text);
    const json = make("button", { type: "button" }, "copy its JSON");
    json.onclick = () => { whole.open = true; dato.copy(json, row.json, text) };
    const save = make("a", { class: "save", download: row.file, href: `data:application/json;charset=utf-8,${encodeURIComponent(row.json)}` }, `save ${row.file}`);
    return [make("p", { class: "buttons" }, copy, json, save), code, whole];
  }

  function show(key) {
    const row = rows.get(key);
    if (!row) return;
    const open = [...shown.querySelectorAll("details[open]")].map(d => d.dataset.keep);
    const figures = make("table", { class: "figures" }, ...row.figures.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value))));
    shown.replaceChildren(make("h3", {}, row.label), ...schedule(row), make("div", { class: "two" }, figures, make("div", {}, ...images(row), ...use(row))));
    shown.querySelectorAll("details").forEach(d => { d.open = open.includes(d.dataset.keep) });
    if (front && front.data) {
      if (marker === null) {
        marker = front.data.length;
        Plotly.addTraces(front, { x: [row.at[0]], y: [row.at[1]], mode: "markers", showlegend: false, hoverinfo: "skip", marker: { symbol: "circle-open", size: 20, color: data.chosen, line: { width: 2.5 } } });
      } else Plotly.restyle(front, { x: [[row.at[0]]], y: [[row.at[1]]] }, [marker]);
    }
    dato.chosenChanged?.(key);
  }

  function choose(key) {
    if (!rows.has(key)) return;
    list.value = key;
    show(key);
  }

  list.onchange = () => choose(list.value);
  section.querySelectorAll("button.step").forEach(button => {
    button.onclick = () => {
      list.selectedIndex = (list.selectedIndex + +button.dataset.by + list.options.length) % list.options.length;
      choose(list.value);
    };
  });
  if (front && front.on) {
    const pointed = event => event.points[0]?.customdata?.key;
    let pending;
    front.on("plotly_click", event => { clearTimeout(pending); choose(pointed(event)) });
    // Showing what is pointed at waits a little: a pointer that only passes by changes nothing.
    front.on("plotly_hover", event => { clearTimeout(pending); pending = setTimeout(() => show(pointed(event)), 120) });
    front.on("plotly_unhover", () => { clearTimeout(pending); pending = setTimeout(() => show(list.value), 250) });
  }
  dato.explorer = { data, rows, choose, chosen: () => list.value };
  choose(list.value);
});
