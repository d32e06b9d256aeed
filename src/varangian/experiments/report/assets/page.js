"use strict";
(() => {
  const data = new Map();
  const views = new Map();

  // RFC 4180: the CSV of a download link is also what its charts and tables are drawn from.
  function parseCsv(text) {
    const rows = [];
    let row = [], cell = "", quoted = false;
    for (let i = 0; i < text.length; i++) {
      const c = text[i];
      if (quoted) {
        if (c !== '"') cell += c;
        else if (text[i + 1] === '"') { cell += '"'; i++; }
        else quoted = false;
      } else if (c === '"') quoted = true;
      else if (c === ",") { row.push(cell); cell = ""; }
      else if (c === "\n") { row.push(cell); rows.push(row); row = []; cell = ""; }
      else if (c !== "\r") cell += c;
    }
    if (cell || row.length) { row.push(cell); rows.push(row); }
    return rows;
  }

  function source(id) {
    if (!data.has(id)) {
      const link = document.getElementById(id);
      const [names, ...rows] = parseCsv(decodeURIComponent(link.href.slice(link.href.indexOf(",") + 1)));
      const numbers = new Set((link.dataset.numbers || "").split(","));
      const convert = (name, text) => !numbers.has(name) ? text : text === "" ? null : Number(text);
      data.set(id, { names, rows: rows.map((row) => Object.fromEntries(row.map((text, k) => [names[k], convert(names[k], text)]))) });
    }
    return data.get(id);
  }

  // What the controls of a section let through: values of a select, and boxes that are ticked.
  function chosen(place) {
    const found = [];
    const section = place.closest("section");
    for (const select of section.querySelectorAll("select[data-field]")) {
      found.push((row) => row[select.dataset.field] === select.value);
    }
    const hidden = new Map();
    for (const box of section.querySelectorAll("input[data-field]")) {
      if (!hidden.has(box.dataset.field)) hidden.set(box.dataset.field, new Set());
      if (!box.checked) hidden.get(box.dataset.field).add(box.value);
    }
    for (const [field, values] of hidden) found.push((row) => !values.has(row[field]));
    return found;
  }

  function rowsOf(chart) {
    const fixed = Object.entries(JSON.parse(chart.dataset.where || "{}"));
    const tests = chosen(chart);
    return source(chart.dataset.source).rows.filter(
      (row) => fixed.every(([field, value]) => row[field] === value) && tests.every((test) => test(row)));
  }

  async function draw(chart) {
    const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
    spec.description = chart.dataset.description;
    spec.data = { name: "rows", values: rowsOf(chart) };
    const { view } = await window.vegaEmbed(chart, spec, {
      mode: "vega-lite", ast: true, renderer: "svg", actions: false, defaultStyle: false,
      tooltip: { disableDefaultStyle: true }, logLevel: 1,
    });
    views.set(chart, view);
    await fit(chart, view);
  }

  // The vertical axis: the whole range, or where the lines are once the first quarter of the rounds is over. Lines that
  // end far from the best one would hide the others: they are cut off, and named below the chart.
  async function fit(chart, view) {
    const { usermeta } = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
    if (!usermeta) return;
    let [low, high] = usermeta.whole;
    const cut = [];
    if (chart.closest("section").querySelector("input.fit")?.checked) {
      const lines = new Map();
      for (const row of rowsOf(chart)) {
        if (row.mean === null) continue;
        if (!lines.has(row[usermeta.line])) lines.set(row[usermeta.line], []);
        lines.get(row[usermeta.line]).push(row);
      }
      const ends = [...lines.values()].map((rows) => rows.at(-1).mean);
      const best = usermeta.higher ? Math.max(...ends) : Math.min(...ends);
      const far = (end) => (usermeta.higher ? end < best / 2 : end > 4 * best);
      const shown = [];
      for (const [name, rows] of lines) {
        if (far(rows.at(-1).mean)) { cut.push(name); continue; }
        const late = rows.filter((row) => row[usermeta.x] >= rows.at(-1)[usermeta.x] / 4);
        shown.push(...late.map((row) => row.mean));
      }
      if (shown.length) {
        const [least, most] = [Math.min(...shown), Math.max(...shown)];
        const margin = 0.05 * (most - least) || 0.05 * Math.abs(most) || 1;
        [low, high] = [Math.max(least - margin, usermeta.whole[0]), most + margin];
      }
    }
    view.signal("low", low).signal("high", high);
    await view.runAsync();
    let note = chart.parentElement.querySelector(".cut");
    if (!note && cut.length) {
      note = document.createElement("p");
      note.className = "soft cut";
      chart.after(note);
    }
    if (note) note.textContent = cut.length ? `Cut off: ${cut.join(", ")}.` : "";
  }

  function redraw(section) {
    for (const chart of section.querySelectorAll(".chart")) {
      const view = views.get(chart);
      if (!view) continue;
      const all = rowsOf(chart);
      view.change("rows", view.changeset().remove(() => true).insert(all));
      view.runAsync().then(() => fit(chart, view));
    }
    for (const panel of section.querySelectorAll("[data-group]")) {
      const select = section.querySelector("select[data-field]");
      panel.hidden = select !== null && panel.dataset.group !== select.value;
    }
  }

  function fillTable(details) {
    const place = details.querySelector("[data-table]");
    if (!place || place.childElementCount) return;
    const { names, rows } = source(place.dataset.table);
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const name of names) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      head.append(cell);
    }
    const body = table.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      for (const name of names) line.insertCell().textContent = row[name] ?? "";
    }
    place.append(table);
  }

  function sortBy(button, order) {
    const header = button.closest("th");
    const table = header.closest("table");
    const column = [...header.parentElement.children].indexOf(header);
    const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent.trim();
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const numbers = Number(x) - Number(y);
      return sign * (Number.isNaN(numbers) ? x.localeCompare(y, undefined, { numeric: true }) : numbers);
    });
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    table.tBodies[0].append(...rows);
  }

  async function copy(text, button) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const field = document.createElement("textarea");
      field.value = text;
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
      button.focus();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  document.addEventListener("click", (event) => {
    const sort = event.target.closest("th button");
    if (sort) {
      const first = sort.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      sortBy(sort, sort.closest("th").getAttribute("aria-sort") === first ? other : first);
    }
    const button = event.target.closest("button[data-copy]");
    if (button) copy(document.getElementById(button.dataset.copy).textContent, button);
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-field], input.fit")) redraw(event.target.closest("section"));
  });
  document.addEventListener("toggle", (event) => {
    if (event.target.matches("details[open]")) fillTable(event.target);
  }, true);

  const drawAll = (place) => Promise.all([...place.querySelectorAll(".chart")].map(draw));

  // A run in progress: the page is asked for again, and only sections that have changed are replaced.
  function stateOf(section) {
    const open = [...section.querySelectorAll("details[id][open]")].map((one) => one.id);
    const fields = [...section.querySelectorAll("select[id], input[id]")].map((one) => [one.id, one.value, one.checked]);
    const sorted = [...section.querySelectorAll("th[aria-sort] button")].map(
      (one) => [one.id, one.closest("th").getAttribute("aria-sort")]);
    return { open, fields, sorted, focus: section.contains(document.activeElement) ? document.activeElement.id : "" };
  }

  function restore({ open, fields, sorted, focus }) {
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    for (const [id, value, checked] of fields) {
      const field = document.getElementById(id);
      if (!field) continue;
      if (field.type === "checkbox") field.checked = checked;
      else if ([...field.options].some((option) => option.value === value)) field.value = value;
    }
    for (const [id, order] of sorted) {
      const button = document.getElementById(id);
      if (button) sortBy(button, order);
    }
    if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  }

  async function replaceChanged(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    const scroll = [window.scrollX, window.scrollY];
    const keep = document.querySelector("main");
    for (const element of fresh.querySelectorAll("[data-version]")) {
      const old = document.getElementById(element.id);
      if (old && old.dataset.version === element.dataset.version) continue;
      const adopted = document.importNode(element, true);
      if (!old) {
        if (adopted.localName === "section") keep.append(adopted);
        else continue;
      } else {
        const state = stateOf(old);
        for (const chart of old.querySelectorAll(".chart")) { views.get(chart)?.finalize(); views.delete(chart); }
        for (const link of old.querySelectorAll("a[download]")) data.delete(link.id);
        adopted.style.minHeight = `${old.offsetHeight}px`;
        old.replaceWith(adopted);
        restore(state);
      }
      await drawAll(adopted);
      redraw(adopted);
      for (const details of adopted.querySelectorAll("details[open]")) fillTable(details);
      adopted.style.minHeight = "";
    }
    document.title = fresh.title;
    window.scrollTo(...scroll);
  }

  async function follow(seconds) {
    let tag = "";
    for (;;) {
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      try {
        const answer = await fetch(location.pathname, { headers: { "If-None-Match": tag }, cache: "no-store" });
        if (answer.status === 200) {
          tag = answer.headers.get("ETag") || "";
          await replaceChanged(await answer.text());
        }
      } catch {
        const line = document.getElementById("live");
        const lost = "The program that serves this page has ended. What is shown stays as it was.";
        if (line.textContent !== lost) line.textContent = lost;
        tag = "";  // should it come back, what it says replaces this
        document.getElementById("top").dataset.version = "";
      }
    }
  }

  async function start() {
    await drawAll(document);
    for (const section of document.querySelectorAll("section")) redraw(section);
    for (const details of document.querySelectorAll("details[open]")) fillTable(details);
    document.documentElement.dataset.ready = "yes";
    const seconds = Number(document.documentElement.dataset.follow);
    if (seconds) follow(seconds);
  }
  start();
})();
