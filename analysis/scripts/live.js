// A page that is served while a search runs: what is new replaces what is there, and the reader keeps place, choice and zoom.
(() => {
  const line = document.createElement("p"), every = 3000;
  line.className = "live"; line.setAttribute("role", "status");
  document.body.append(line);
  let tag = null, touched = 0, waiting = null;
  for (const kind of ["pointerdown", "pointerup", "keydown", "wheel", "touchmove"]) addEventListener(kind, () => { touched = Date.now() }, { passive: true });
  const say = text => { line.textContent = text };
  const clock = () => new Date().toLocaleTimeString();
  // Not under a finger, and not while a list is open, which nothing tells: for a while after it was last touched.
  const isBusy = () => Date.now() - touched < (document.activeElement?.tagName === "SELECT" ? 20000 : 1500);
  const headings = () => [...document.querySelectorAll("main h1, main h2")];
  const titled = (plot, i) => plot.id === "front" ? "front" : `${headings().filter(h => h.compareDocumentPosition(plot) & Node.DOCUMENT_POSITION_FOLLOWING).pop()?.textContent}/${i}`;

  function remember() {
    const at = headings().map(h => [h.textContent, h.getBoundingClientRect().top]).filter(([, top]) => top < innerHeight / 2).pop();
    const plots = {};
    document.querySelectorAll(".js-plotly-plot").forEach((plot, i) => {
      const kept = {};
      for (const [key, axis] of Object.entries(plot.layout)) {
        if (!/^[xy]axis\d*$/.test(key)) continue;
        if (axis.type === "log" || plot.id === "front") kept[`${key}.type`] = axis.type;
        if (axis.range && axis.autorange === false) kept[`${key}.range`] = [...axis.range];
      }
      plots[titled(plot, i)] = kept;
    });
    return {
      at, plots, x: scrollX, y: scrollY,
      open: [...document.querySelectorAll("main details[open] > summary")].map(s => s.textContent),
      chosen: dato.explorer?.chosen(), ranges: dato.parallel?.ranges(),
      focus: [...document.querySelectorAll("main select, main button, main .handle, main summary")].indexOf(document.activeElement),
    };
  }

  function restore(kept) {
    if (kept.chosen) dato.explorer?.choose(kept.chosen);
    if (kept.ranges) dato.parallel?.keep(kept.ranges);
    document.querySelectorAll("main details > summary").forEach(s => { if (kept.open.includes(s.textContent)) s.parentElement.open = true });
    document.querySelectorAll(".js-plotly-plot").forEach((plot, i) => {
      const layout = Object.fromEntries(Object.entries(kept.plots[titled(plot, i)] || {}).filter(([, v]) => v !== undefined));
      if (Object.keys(layout).length) Plotly.relayout(plot, layout);
    });
    document.querySelectorAll("main select, main button, main .handle, main summary")[kept.focus]?.focus({ preventScroll: true });
    const heading = kept.at && headings().find(h => h.textContent === kept.at[0]);
    scrollTo(kept.x, heading ? scrollY + heading.getBoundingClientRect().top - kept.at[1] : kept.y);
  }

  function replace(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html").querySelector("main"), old = document.querySelector("main"), kept = remember();
    document.querySelectorAll(".js-plotly-plot").forEach(plot => Plotly.purge(plot));
    old.style.minHeight = `${old.offsetHeight}px`;
    old.replaceChildren(...fresh.childNodes);
    // Scripts of a parsed page do not run: they are put there anew.
    old.querySelectorAll("script:not([type])").forEach(script => {
      const made = document.createElement("script");
      made.textContent = script.textContent;
      script.replaceWith(made);
    });
    dato.start();
    restore(kept);
    old.style.minHeight = "";
  }

  async function look() {
    let answer;
    try {
      answer = await fetch("/", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
    } catch {
      say(`Nobody serves this page any more: it shows what was known at ${line.dataset.at || clock()}. dato report folder=... watch=true serves it again.`);
      return setTimeout(look, 10 * every);
    }
    const ended = answer.headers.get("Dato-Search") === "ended";
    if (answer.status === 200) waiting = [answer.headers.get("ETag"), await answer.text(), answer.headers.get("Dato-Changed")];
    else if (answer.status !== 304) say(await answer.text());
    if (waiting && (ended || !isBusy())) {
      replace(waiting[1]);
      tag = waiting[0]; line.dataset.at = waiting[2]; waiting = null;
    } else if (waiting) tag = waiting[0];
    if (ended) return say(`The search has ended: this is its last state, of ${line.dataset.at}. The page is not renewed any more; it stays until you close it.`);
    if (answer.ok || answer.status === 304) say(`The search runs: this page follows it. Last change ${line.dataset.at || clock()}.`);
    setTimeout(look, every);
  }
  say("The search runs: this page follows it.");
  setTimeout(look, every);
})();
