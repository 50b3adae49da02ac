// Tables are paged, sorted and filtered from the page's data block; figures are the SVG that stands in the page, to which hovering,
// hiding and selecting are added. Filters, legends and selections count for all figures and for every table with the same columns.
"use strict";
(() => {
  const { tables, svgStyle } = JSON.parse(document.getElementById("data").textContent);
  const byId = new Map(tables.map((table) => [table.id, table]));
  const PAGE = 50;
  const PRINTED = 150;
  const SVG = "http://www.w3.org/2000/svg";
  document.documentElement.classList.add("js");

  const el = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value === true) node.setAttribute(key, "");
      else if (value !== false && value != null) node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const shown = (cell) => (cell == null ? "" : Array.isArray(cell) ? cell[1] : cell);
  const column = (table, key) => table.columns.findIndex((one) => one.key === key);

  // ---- What is shown: shared by figures and tables.
  const state = { query: "", facets: new Map(), hidden: new Set(), picked: null };
  const listeners = [];
  let asked = false;
  const changed = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      verdicts.clear();
      for (const listener of listeners) listener();
    });
  };
  // Which rows of a table pass, once for each change.
  const verdicts = new Map();
  const passing = (table) => {
    if (verdicts.has(table.id)) return verdicts.get(table.id);
    const linked = ["results", "tasks", "costs"].includes(table.id);
    const facets = linked ? [...state.facets].map(([key, values]) => [column(table, key), values]).filter(([at]) => at >= 0) : [];
    const hidden = new Map();
    if (linked) {
      for (const key of state.hidden) {
        const cut = key.indexOf("=");
        const at = column(table, key.slice(0, cut));
        if (at < 0) continue;
        if (!hidden.has(at)) hidden.set(at, new Set());
        hidden.get(at).add(key.slice(cut + 1));
      }
    }
    const words = linked ? state.query.toLowerCase().split(/\s+/).filter(Boolean) : [];
    table.texts ??= words.length ? table.rows.map((row) => row.map(shown).join(" ").toLowerCase()) : undefined;
    const pass = table.rows.map((row, index) => {
      for (const [at, values] of facets) if (!values.has(shown(row[at]))) return false;
      for (const [at, values] of hidden) if (values.has(shown(row[at]))) return false;
      return words.every((word) => table.texts[index].includes(word));
    });
    verdicts.set(table.id, pass);
    return pass;
  };

  // ---- Files made from what the page holds.
  const save = (name, type, text) => {
    const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const quoted = (text) => (/[,"\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const csv = (table, order) => {
    const heads = table.columns.flatMap((one) => (one.error ? [one.key, `${one.key}_stderr`] : [one.key]));
    const lines = order.map((index) =>
      table.rows[index].flatMap((cell, at) => {
        const value = Array.isArray(cell) ? String(cell[0] ?? "") : quoted(cell ?? "");
        return table.columns[at].error ? [value, Array.isArray(cell) && cell.length > 2 ? String(cell[2]) : ""] : [value];
      }),
    );
    return [heads.map(quoted), ...lines].map((cells) => cells.join(",") + "\n").join("");
  };
  const svgFile = (svg) => {
    const copy = svg.cloneNode(true);
    for (const node of copy.querySelectorAll(".hidden,.off,.brush")) node.remove();
    copy.classList.remove("picking", "live");
    copy.removeAttribute("tabindex");
    const style = document.createElementNS(SVG, "style");
    style.textContent = svgStyle;
    const paper = document.createElementNS(SVG, "rect");
    for (const [key, value] of [["width", "100%"], ["height", "100%"], ["fill", "#fff"]]) paper.setAttribute(key, value);
    copy.prepend(style, paper);
    return new XMLSerializer().serializeToString(copy) + "\n";
  };

  // ---- Tables.
  const menu = (label, make) => {
    const body = el("div");
    const node = el("details", { class: "menu" }, el("summary", {}, label), body);
    let made = false;
    node.addEventListener("toggle", () => {
      if (node.open && !made) {
        made = true;
        make(body, node);
      }
    });
    node.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        node.open = false;
        node.querySelector("summary").focus();
      }
    });
    return node;
  };
  document.addEventListener("pointerdown", (event) => {
    for (const node of document.querySelectorAll("details.menu[open]")) if (!node.contains(event.target)) node.open = false;
  });

  for (const holder of document.querySelectorAll(".table")) {
    const table = byId.get(holder.dataset.table);
    const [head, body] = [holder.querySelector("thead tr"), holder.querySelector("tbody")];
    const front = new Set(table.front);
    const main = table.id === "results";
    const visible = new Set(table.columns.flatMap((one, at) => (one.hidden ? [] : [at])));
    let sort = null;
    let page = 0;
    let query = "";
    let order = [];
    const count = el("span", { class: "soft count", role: "status" });
    const before = el("button", { class: "act", type: "button", onclick: () => draw(page - 1) }, "Previous");
    const after = el("button", { class: "act", type: "button", onclick: () => draw(page + 1) }, "Next");

    const heads = () => {
      head.replaceChildren(
        ...[...visible].sort((a, b) => a - b).map((at) => {
          const one = table.columns[at];
          const button = el("button", { type: "button", onclick: () => {
            sort = sort?.at === at ? (sort.up ? { at, up: false } : null) : { at, up: true };
            arrange();
          } }, one.label);
          const direction = sort?.at === at ? (sort.up ? "ascending" : "descending") : "none";
          return el("th", { scope: "col", class: one.number ? "n" : null, "aria-sort": direction }, button);
        }),
      );
    };
    const line = (index) => {
      const row = el("tr", { class: front.has(index) ? "front" : null });
      for (const at of [...visible].sort((a, b) => a - b)) {
        const [cell, one] = [table.rows[index][at], table.columns[at]];
        const label = table.stacked ? one.label : null;
        const node = el("td", { class: one.number ? "n" : one.wrap ? "wrap" : null, "data-label": label }, shown(cell));
        if (Array.isArray(cell) && cell.length > 2) node.append(" ", el("span", { class: "err" }, `± ${cell[3]}`));
        row.append(node);
      }
      return row;
    };
    const draw = (wanted, length = PAGE) => {
      const pages = Math.max(1, Math.ceil(order.length / PAGE));
      page = Math.min(Math.max(wanted, 0), pages - 1);
      const from = length === PAGE ? page * PAGE : 0;
      body.replaceChildren(...order.slice(from, from + length).map(line));
      const part = order.length > PAGE ? `, ${from + 1} to ${Math.min(order.length, from + PAGE)}` : "";
      count.textContent = `${order.length} of ${table.rows.length}${part}`;
      before.disabled = page === 0;
      after.disabled = page >= pages - 1;
      before.hidden = after.hidden = pages === 1;
    };
    const arrange = () => {
      const pass = passing(table);
      const words = query.toLowerCase().split(/\s+/).filter(Boolean);
      order = [];
      for (let index = 0; index < table.rows.length; index++) {
        if (!pass[index]) continue;
        if (state.picked && state.picked.table === table.id && !state.picked.rows.has(index)) continue;
        if (words.length) {
          const text = table.rows[index].map(shown).join(" ").toLowerCase();
          if (!words.every((word) => text.includes(word))) continue;
        }
        order.push(index);
      }
      if (sort) {
        const { at, up } = sort;
        const compare = new Intl.Collator("en", { numeric: true }).compare;
        const value = (index) => table.rows[index][at];
        order.sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          // What is not there comes last either way.
          if (x == null || y == null) return (x == null) - (y == null);
          const less = Array.isArray(x) && Array.isArray(y) ? x[0] - y[0] : compare(shown(x), shown(y));
          return up ? less : -less;
        });
      }
      heads();
      draw(0);
    };
    const tools = el("div", { class: "tools" });
    if (!main && table.rows.length > 8) {
      tools.append(el("input", { type: "search", placeholder: "Filter", "aria-label": `Filter ${table.id}`, oninput: (event) => {
        query = event.target.value;
        arrange();
      } }));
    }
    if (table.columns.some((one) => one.hidden)) {
      tools.append(menu("Columns", (list) => {
        table.columns.forEach((one, at) => {
          const box = el("input", { type: "checkbox", "data-column": one.key });
          box.checked = visible.has(at);
          box.addEventListener("change", () => {
            if (box.checked) visible.add(at);
            else visible.delete(at);
            heads();
            draw(page);
          });
          list.append(el("label", {}, box, ` ${one.label}`));
        });
      }));
    }
    tools.append(el("button", { class: "act", type: "button", "data-save": "csv", onclick: () => save(`${table.id}.csv`, "text/csv", csv(table, order)) }, "CSV"), count, before, after);
    holder.prepend(tools);
    holder.querySelector(".cut")?.remove();
    listeners.push(arrange);
    // On paper, tables are cut where they would fill a book.
    const rest = el("p", { class: "soft printed" });
    holder.append(rest);
    window.addEventListener("beforeprint", () => {
      rest.textContent = order.length > PRINTED ? `The first ${PRINTED} of ${order.length} rows; report/tables/${table.id}.csv has all.` : "";
      draw(0, PRINTED);
    });
    window.addEventListener("afterprint", () => draw(page));
    arrange();
  }

  // ---- Filters for everything.
  const filters = document.getElementById("filters");
  const results = byId.get("results");
  if (filters && results) {
    const search = el("input", { type: "search", id: "query", placeholder: "Filter results", "aria-label": "Filter results and plots by words", oninput: () => {
      state.query = search.value;
      changed();
    } });
    filters.append(search);
    const menus = [];
    for (const [at, one] of results.columns.entries()) {
      if (!one.facet) continue;
      const values = [...new Set(results.rows.map((row) => shown(row[at])))];
      if (values.length < 2) continue;
      values.sort(new Intl.Collator("en", { numeric: true }).compare);
      const node = menu(one.label, (list) => {
        for (const value of values) {
          const box = el("input", { type: "checkbox", "data-facet": one.key, value });
          box.checked = state.facets.get(one.key)?.has(value) ?? false;
          box.addEventListener("change", () => {
            const chosen = new Set([...list.querySelectorAll("input:checked")].map((input) => input.value));
            if (chosen.size) state.facets.set(one.key, chosen);
            else state.facets.delete(one.key);
            node.classList.toggle("on", chosen.size > 0);
            changed();
          });
          list.append(el("label", {}, box, ` ${value || "(none)"}`));
        }
      });
      node.dataset.menu = one.key;
      menus.push(node);
      filters.append(node);
    }
    const chip = el("button", { class: "act", type: "button", id: "unpick", hidden: true, onclick: () => {
      state.picked = null;
      changed();
    } });
    const reset = el("button", { class: "act", type: "button", id: "reset", onclick: () => {
      Object.assign(state, { query: "", facets: new Map(), hidden: new Set(), picked: null });
      search.value = "";
      for (const node of menus) {
        node.classList.remove("on");
        for (const box of node.querySelectorAll("input")) box.checked = false;
      }
      changed();
    } }, "Show all");
    filters.append(chip, reset);
    const tell = () => {
      chip.hidden = !state.picked;
      if (state.picked) chip.textContent = `${state.picked.rows.size} selected: clear`;
      reset.disabled = !state.query && !state.facets.size && !state.hidden.size && !state.picked;
    };
    listeners.push(tell);
    tell();
  }

  // ---- Figures.
  const tip = document.getElementById("tip");
  const words = (table, index, svg) => {
    const row = table.rows[index];
    const text = (key) => shown(row[column(table, key)]);
    const lines = [];
    for (const key of ["bpw_file", svg.dataset.x, svg.dataset.y]) {
      const at = column(table, key);
      if (at < 0 || row[at] == null || lines.some(([known]) => known === key)) continue;
      const error = Array.isArray(row[at]) && row[at].length > 2 ? ` ± ${row[at][3]}` : "";
      lines.push([key, `${table.columns[at].label}: ${shown(row[at])}${error}`]);
    }
    const size = text("bytes");
    if (size && svg.dataset.x !== "bytes") lines.push(["bytes", size]);
    return [`${text("model")} ${text("scheme")}`, ...lines.map(([, words]) => words)];
  };
  const place = (dot) => dot.getAttribute("d").match(/^M(-?[\d.]+) (-?[\d.]+)/).slice(1).map(Number);

  for (const svg of document.querySelectorAll("svg.chart")) {
    const table = byId.get(svg.dataset.of);
    if (!table) continue;
    const figure = svg.closest("figure");
    const variant = svg.closest(".variant");
    const dots = [...svg.querySelectorAll("[data-row]")].map((node) => ({ node, row: Number(node.dataset.row), dot: node.matches(".dot") }));
    for (const { node } of dots) node.querySelector("title")?.remove();
    const points = dots.filter(({ dot }) => dot);
    for (const point of points) [point.x, point.y] = place(point.node);
    svg.classList.add("live");
    svg.setAttribute("tabindex", "0");
    svg.setAttribute("aria-label", `${svg.getAttribute("aria-label")}. Arrow keys go from point to point.`);

    // The legend hides a series here and wherever else it is.
    const legend = el("div", { class: "legend", role: "group", "aria-label": "Series" });
    const keys = new Map();
    for (const group of svg.querySelectorAll("g.series[data-label]")) {
      const { key, label } = group.dataset;
      if (keys.has(key)) continue;
      const mark = document.createElementNS(SVG, "svg");
      mark.setAttribute("viewBox", "-7 -7 14 14");
      const dot = [...svg.querySelectorAll("g.series")].find((one) => one.dataset.key === key && one.querySelector(":scope>.leader+.dot"))?.querySelector(".dot").cloneNode();
      if (dot) {
        dot.setAttribute("d", dot.getAttribute("d").replace(/^M-?[\d.]+ -?[\d.]+/, "M0 0"));
        mark.append(dot);
      }
      const button = el("button", { type: "button", "aria-pressed": "true", "data-key": key, onclick: () => {
        if (state.hidden.has(key)) state.hidden.delete(key);
        else state.hidden.add(key);
        changed();
      } }, mark, label);
      keys.set(key, button);
      legend.append(button);
    }
    variant.querySelector(".plot").before(legend);
    const saver = el("button", { class: "act", type: "button", "data-save": "svg", onclick: () => save(`${variant.dataset.id}.svg`, "image/svg+xml", svgFile(svg)) }, "SVG");
    legend.append(saver);

    const update = () => {
      const pass = passing(table);
      for (const group of svg.querySelectorAll("g.series")) group.classList.toggle("hidden", state.hidden.has(group.dataset.key));
      for (const [key, button] of keys) button.setAttribute("aria-pressed", String(!state.hidden.has(key)));
      const picked = state.picked?.table === table.id ? state.picked.rows : null;
      svg.classList.toggle("picking", picked != null);
      for (const { node, row } of dots) {
        node.classList.toggle("off", !pass[row]);
        node.classList.toggle("in", picked != null && picked.has(row));
      }
    };
    listeners.push(update);

    // The nearest point within reach.
    let at = null;
    const show = (point, event) => {
      at?.node.classList.remove("at");
      at = point;
      tip.hidden = point == null;
      if (point == null) return;
      point.node.classList.add("at");
      const [title, ...rest] = words(table, point.row, svg);
      tip.replaceChildren(el("b", {}, title), ...rest.flatMap((line, index) => (index ? [el("br"), line] : [line])));
      const box = point.node.getBoundingClientRect();
      const [x, y] = event ? [event.clientX, event.clientY] : [box.right, box.top];
      const width = tip.offsetWidth;
      tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 8))}px`;
      const above = y - tip.offsetHeight - 12;
      tip.style.top = `${above > 4 ? above : y + 18}px`;
    };
    const visiblePoints = () => points.filter(({ node }) => !node.classList.contains("off") && !node.parentNode.classList.contains("hidden"));
    const where = (event) => {
      const box = svg.getBoundingClientRect();
      const view = svg.viewBox.baseVal;
      return [((event.clientX - box.left) / box.width) * view.width, ((event.clientY - box.top) / box.height) * view.height];
    };
    const nearest = (event) => {
      const [x, y] = where(event);
      let [best, found] = [18 ** 2, null];
      for (const point of visiblePoints()) {
        const far = (point.x - x) ** 2 + (point.y - y) ** 2;
        if (far < best) [best, found] = [far, point];
      }
      return found;
    };
    let brush = null;
    svg.addEventListener("pointermove", (event) => {
      if (!brush) {
        show(nearest(event), event);
        return;
      }
      const [x, y] = where(event);
      const [left, top] = [Math.min(x, brush.x), Math.min(y, brush.y)];
      const [wide, high] = [Math.abs(x - brush.x), Math.abs(y - brush.y)];
      for (const [key, value] of Object.entries({ x: left, y: top, width: wide, height: high })) brush.node.setAttribute(key, value);
      brush.area = [left, top, left + wide, top + high];
    });
    svg.addEventListener("pointerleave", () => show(null));
    svg.addEventListener("blur", () => show(null));
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      const [x, y] = where(event);
      const node = document.createElementNS(SVG, "rect");
      node.classList.add("brush");
      svg.append(node);
      brush = { x, y, node, area: null };
      svg.setPointerCapture(event.pointerId);
      show(null);
    });
    const done = (event) => {
      if (!brush) return;
      const { area, node } = brush;
      node.remove();
      brush = null;
      if (area && area[2] - area[0] > 4 && area[3] - area[1] > 4) {
        const inside = visiblePoints().filter(({ x, y }) => x >= area[0] && x <= area[2] && y >= area[1] && y <= area[3]);
        state.picked = inside.length ? { table: table.id, rows: new Set(inside.map(({ row }) => row)) } : null;
        changed();
      } else {
        const point = event.type === "pointerup" ? nearest(event) : null;
        if (point || state.picked) {
          state.picked = point ? { table: table.id, rows: new Set([point.row]) } : null;
          changed();
        }
      }
    };
    svg.addEventListener("pointerup", done);
    svg.addEventListener("pointercancel", done);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) {
        event.preventDefault();
        const all = visiblePoints().sort((a, b) => a.x - b.x || a.y - b.y);
        if (all.length) show(all[(all.indexOf(at) + step + all.length) % all.length]);
      } else if (event.key === "Enter" && at) {
        state.picked = { table: table.id, rows: new Set([at.row]) };
        changed();
      } else if (event.key === "Escape") {
        show(null);
        state.picked = null;
        changed();
      }
    });
  }

  // Of several drawings one is shown.
  for (const figure of document.querySelectorAll("figure")) {
    const variants = [...figure.querySelectorAll(":scope>.variant")];
    if (variants.length < 2) continue;
    const choose = el("select", { "aria-label": "Drawing", onchange: () => {
      variants.forEach((variant, index) => (variant.hidden = index !== choose.selectedIndex));
    } }, ...variants.map((variant) => el("option", {}, variant.dataset.name)));
    for (const variant of variants) variant.querySelector(".variant-name")?.classList.add("hidden");
    figure.querySelector(".figure-head").append(choose);
    choose.dispatchEvent(new Event("change"));
  }

  // Maps of tensors.
  for (const map of document.querySelectorAll("figure.map")) {
    const svg = map.querySelector("svg");
    for (const rect of svg.querySelectorAll("rect")) {
      rect.dataset.words = rect.querySelector("title").textContent;
      rect.querySelector("title").remove();
    }
    svg.addEventListener("pointermove", (event) => {
      const text = event.target.dataset?.words;
      tip.hidden = !text;
      if (!text) return;
      tip.replaceChildren(el("b", {}, map.querySelector("figcaption").firstChild.textContent), text);
      tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${event.clientY + 18}px`;
    });
    svg.addEventListener("pointerleave", () => (tip.hidden = true));
  }
})();
