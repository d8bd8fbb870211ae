"use strict";
(() => {
  const source = document.getElementById("matrix-data");
  if (!source) return;
  const { columns, data, headline } = JSON.parse(source.textContent);
  const moduleOrder = JSON.parse(document.getElementById("module-order").textContent);
  const rowCount = data.length ? data[0].length : 0;
  const indexOf = (key) => columns.findIndex((c) => c.key === key);
  const byId = (id) => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // Numbers are written as in the rest of the page: three significant digits, powers of ten far from one.
  const superscript = (n) => String(n).replace(/[-\d]/g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[+c]));
  const number = (v) => {
    if (v === 0) return "0";
    const exponent = Math.floor(Math.log10(Math.abs(Number(v.toPrecision(3)))));
    const text = exponent >= -3 && exponent < 5
      ? v.toFixed(Math.max(2 - exponent, 0))
      : (v / 10 ** exponent).toFixed(2) + "×10" + superscript(exponent);
    return text.replace("-", "−");
  };
  const format = (column, v) => {
    if (v === null || v === undefined) return "–";
    if (column.kind === "text") return String(v);
    if (column.kind === "z" || column.kind === "ratio") return number(v);
    const sign = column.kind === "excess" && v > 0 ? "+" : "";
    if (column.unit === "share") {
      const p = Math.abs(v) < 1e-11 ? 0 : 100 * v; // less is what rounding leaves of a difference of shares
      const text = p !== 0 && Math.abs(p) < 0.1 ? number(p) : p.toFixed(1).replace("-", "−");
      return (text === "0.0" ? "" : sign) + text + (column.kind === "excess" ? " pp" : " %");
    }
    if (column.unit === "count") return String(Math.round(v));
    return sign + number(v) + (column.unit === "deg" ? "°" : "");
  };

  // ---- the per-matrix table: sorted and filtered as indices, drawn one page at a time
  const pageSize = 50;
  const collator = new Intl.Collator("en", { numeric: true });
  const state = { sort: -1, descending: false, page: 0, needle: "", order: [], shown: [] };
  const table = byId("matrices"), head = table.tHead, body = table.tBodies[0];

  const compare = (column, a, b) => (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b)));
  const arrange = () => {
    const names = data[indexOf("name")] || [], modules = data[indexOf("module")] || [], methods = data[indexOf("method")] || [];
    const words = state.needle.toLowerCase().split(/\s+/).filter(Boolean);
    state.order = [];
    for (let i = 0; i < rowCount; i++) {
      const text = `${names[i]} ${modules[i]} ${methods[i]}`.toLowerCase();
      if (words.every((w) => text.includes(w))) state.order.push(i);
    }
    if (state.sort >= 0) {
      const values = data[state.sort], column = columns[state.sort], sign = state.descending ? -1 : 1;
      const empty = (v) => v === null || v === undefined;
      state.order.sort((i, j) => {
        const a = values[i], b = values[j];
        if (empty(a) || empty(b)) return empty(a) - empty(b) || i - j; // undefined values stay last either way
        return sign * compare(column, a, b) || i - j;
      });
    }
    state.page = 0;
  };
  const chooseColumns = () => {
    const all = byId("which").value === "all", beside = byId("beside").checked;
    state.shown = columns.map((_, i) => i).filter((i) => {
      const { base, kind } = columns[i];
      if (kind === "text") return true;
      if (!beside && kind !== "value") return false;
      return all || headline.includes(base);
    });
  };
  const drawHead = () => {
    const row = make("tr");
    for (const i of state.shown) {
      const button = make("button", { type: "button", textContent: columns[i].label });
      const th = make("th", { scope: "col", className: columns[i].kind === "text" ? "text" : "" }, button);
      th.dataset.key = columns[i].key;
      if (i === state.sort) th.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      button.addEventListener("click", () => {
        state.descending = state.sort === i ? !state.descending : columns[i].kind !== "text";
        state.sort = i;
        arrange(); drawHead(); drawBody();
        head.querySelector(`th[aria-sort] button`).focus();
      });
      row.append(th);
    }
    head.replaceChildren(row);
  };
  const drawBody = () => {
    const pages = Math.max(1, Math.ceil(state.order.length / pageSize));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const first = state.page * pageSize, part = state.order.slice(first, first + pageSize);
    body.replaceChildren(...part.map((r) => make("tr", {}, ...state.shown.map((i) => {
      const v = data[i][r], text = format(columns[i], v);
      const td = make("td", { textContent: text });
      if (columns[i].kind === "text") td.className = columns[i].key === "name" ? "text name" : "text";
      if (columns[i].key === "name") td.title = text;
      if (v === null && columns[i].kind !== "text") { td.className = "undefined"; td.title = "undefined"; }
      return td;
    }))));
    byId("count").textContent = state.order.length
      ? `${first + 1}–${first + part.length} of ${state.order.length}` : "no matrix has this name";
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page >= pages - 1;
  };
  const turn = (by) => () => { state.page += by; drawBody(); };
  byId("previous").addEventListener("click", turn(-1));
  byId("next").addEventListener("click", turn(1));
  byId("filter").addEventListener("input", (e) => { state.needle = e.target.value; arrange(); drawBody(); });
  for (const id of ["which", "beside"]) byId(id).addEventListener("change", () => { chooseColumns(); drawHead(); drawBody(); });
  chooseColumns(); arrange(); drawHead(); drawBody();

  // ---- the map of layers and modules, for any statistic
  const layers = data[indexOf("layer")], modules = data[indexOf("module")];
  const methods = data[indexOf("method")] || data[indexOf("step")]; // of a study, of a trajectory
  const mapSelect = byId("map-statistic"), methodSelect = byId("map-method");
  const sequential = ["#00204d", "#2c3e6e", "#575d6d", "#7c7b78", "#a69d75", "#d3c164", "#ffea46"];
  const diverging = ["#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b"];
  const rgb = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
  const colour = (stops, t) => {
    const x = Math.min(Math.max(t, 0), 1) * (stops.length - 1), k = Math.min(Math.floor(x), stops.length - 2);
    return rgb(stops[k]).map((c, i) => Math.round(c + (x - k) * (rgb(stops[k + 1])[i] - c)));
  };
  const luminance = (c) => {
    const [r, g, b] = c.map((v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const drawMap = () => {
    const which = indexOf(mapSelect.value), column = columns[which], method = methodSelect ? methodSelect.value : null;
    const cells = new Map(), seenLayers = new Set(), seenModules = new Set();
    for (let r = 0; r < rowCount; r++) {
      if (layers[r] === null || modules[r] === null || (method && String(methods[r]) !== method)) continue;
      seenLayers.add(layers[r]); seenModules.add(modules[r]);
      const v = data[which][r];
      if (v === null) continue;
      const id = layers[r] + "\u0000" + modules[r], entry = cells.get(id) || [0, 0];
      entry[0] += v; entry[1] += 1; cells.set(id, entry);
    }
    const rank = (m) => { const k = moduleOrder.indexOf(m); return k < 0 ? moduleOrder.length : k; };
    const across = [...seenModules].sort((a, b) => rank(a) - rank(b) || collator.compare(a, b));
    const down = [...seenLayers].sort((a, b) => a - b);
    const means = [...cells.values()].map(([sum, n]) => sum / n);
    let low = means.reduce((a, b) => Math.min(a, b), Infinity), high = means.reduce((a, b) => Math.max(a, b), -Infinity);
    const signed = column.kind === "excess" || column.kind === "z", stops = signed ? diverging : sequential;
    // Full colour is never less than a point of a share, or a z of 2: what is nothing must not look like a finding.
    const floor = column.kind === "z" ? 2 : column.unit === "share" ? 0.01 : 0;
    if (signed) { high = Math.max(Math.abs(low), Math.abs(high), floor); low = -high; }
    const rows = down.map((layer) => {
      const row = make("tr", {}, make("th", { scope: "row", textContent: layer }));
      for (const m of across) {
        const entry = cells.get(layer + "\u0000" + m), td = make("td");
        if (!entry) { td.className = "undefined"; td.textContent = "–"; td.title = `layer ${layer}, ${m}: undefined`; }
        else {
          const mean = entry[0] / entry[1], c = colour(stops, high > low ? (mean - low) / (high - low) : 0.5), l = luminance(c);
          td.style.background = `rgb(${c})`;
          td.style.color = 1.05 / (l + 0.05) > (l + 0.05) / 0.05 ? "#fff" : "#000";
          td.textContent = format(column, mean);
          td.title = `layer ${layer}, ${m}: ${format(column, mean)}${entry[1] > 1 ? ` (mean of ${entry[1]})` : ""}`;
        }
        row.append(td);
      }
      return row;
    });
    const map = byId("map");
    map.tHead.replaceChildren(make("tr", {}, make("th", { scope: "col", textContent: "layer" }),
      ...across.map((m) => make("th", { scope: "col", textContent: m }))));
    map.tBodies[0].replaceChildren(...rows);
    map.caption.textContent = `${column.label}, mean per layer and module${method ? `, ${methodSelect.labels[0].textContent.toLowerCase()} ${methodSelect.selectedOptions[0].textContent}` : ""}`;
    const bar = make("i");
    bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
    byId("map-scale").replaceChildren(...(means.length ? [format(column, low), bar, format(column, high)] : ["undefined everywhere"]));
  };
  if (methodSelect && !methods) {
    methodSelect.hidden = true;
    methodSelect.labels[0].hidden = true;
  }
  if (layers && modules && mapSelect) {
    for (const column of columns) {
      if (column.kind !== "text") mapSelect.append(make("option", { value: column.key, textContent: column.label }));
    }
    if (indexOf(headline[1] || headline[0]) >= 0) mapSelect.value = headline[1] || headline[0];
    if (methodSelect && methods) {
      for (const name of new Set(methods)) {
        const label = document.querySelector(`[data-method="${CSS.escape(String(name))}"]`);
        methodSelect.append(make("option", { value: String(name), textContent: label ? label.textContent : String(name) }));
      }
      if (indexOf("method") < 0) methodSelect.value = String(methods[rowCount - 1]); // the last step
      methodSelect.addEventListener("change", drawMap);
    }
    mapSelect.addEventListener("change", drawMap);
    drawMap();
  }
})();
