"use strict";

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// The table: pressing a head sorts by its column, the better end first; pressing it again turns the order round.
function makeSortable(table) {
  const heads = [...table.querySelectorAll("thead th")];
  const body = table.querySelector("tbody");
  const keyOf = (row, index) => {
    const cell = row.cells[index];
    if (index === 0) return cell.textContent;
    return cell.dataset.value === undefined ? NaN : Number(cell.dataset.value.replace("inf", "Infinity"));
  };
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a === b ? 0 : a - b);
  heads.forEach((head, index) => {
    head.querySelector("button").addEventListener("click", (event) => {
      const before = head.getAttribute("aria-sort");
      const first = event.currentTarget.dataset.better === "higher" ? "descending" : "ascending";
      const order = before === null ? first : before === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [keyOf(row, index), row]);
      const known = rows.filter(([key]) => !Number.isNaN(key));
      const unknown = rows.filter(([key]) => Number.isNaN(key)); // these stay at the end
      known.sort(([a], [b]) => sign * compare(a, b));
      body.append(...[...known, ...unknown].map(([, row]) => row));
    });
  });
}

// The explanation of a column, beside its head while that is pointed at or has the focus.
function addTips(table) {
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  const show = (event) => {
    const button = event.currentTarget;
    const place = button.getBoundingClientRect();
    tip.textContent = document.getElementById(button.getAttribute("aria-describedby")).textContent;
    tip.hidden = false;
    tip.style.left = `${clamp(place.left, 8, Math.max(8, innerWidth - tip.offsetWidth - 8))}px`;
    const above = place.top - tip.offsetHeight - 6;
    tip.style.top = `${above > 8 ? above : place.bottom + 6}px`;
  };
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("mouseenter", show);
    button.addEventListener("focus", show);
    button.addEventListener("mouseleave", hide);
    button.addEventListener("blur", hide);
  }
  addEventListener("scroll", hide, { passive: true, capture: true });
  addEventListener("keydown", (event) => event.key === "Escape" && hide());
}

// Report how far the pointer has moved on an element while it is pressed, in parts of the element `measure`.
function onDrag(element, measure, start, move) {
  let last = null;
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    element.setPointerCapture(event.pointerId);
    last = event;
    start(event);
  });
  element.addEventListener("pointermove", (event) => {
    if (last === null) return;
    const { width, height } = measure.getBoundingClientRect();
    move(event, (event.clientX - last.clientX) / width, (event.clientY - last.clientY) / height);
    last = event;
  });
  for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, () => { last = null; });
}

// A picture: everything follows from --split, --x, --y and --zoom of its article, which the style sheet reads.
function makePicture(article) {
  const find = (selector) => article.querySelector(selector);
  const sources = [...article.querySelectorAll(".source")];
  const stage = find(".stage"), box = find(".box"), split = find(".split"), zoom = find(".zoom");
  const number = (name) => Number(article.style.getPropertyValue(name));
  const set = (name, value) => article.style.setProperty(name, value);

  function choose() {
    for (const [side, image] of [["left", ".under"], ["right", ".over"]]) {
      const source = sources[find(`select.${side}`).value];
      find(image).src = source.src;
      find(image).alt = `${side}: ${source.alt}`;
    }
  }
  function divide(percent) {
    split.value = percent;
    set("--split", split.value);
    const name = (side) => find(`select.${side}`).selectedOptions[0].text;
    split.setAttribute("aria-valuetext", `${split.value}% ${name("left")}, the rest ${name("right")}`);
  }
  function moveTo(x, y) {
    const room = 1 - 1 / number("--zoom");
    set("--x", clamp(x, 0, room));
    set("--y", clamp(y, 0, room));
  }
  function magnify(factor) {
    const middle = 0.5 / number("--zoom");
    const [x, y] = [number("--x") + middle, number("--y") + middle];
    zoom.value = factor;
    set("--zoom", zoom.value);
    zoom.setAttribute("aria-valuetext", `${zoom.value} times`);
    moveTo(x - 0.5 / zoom.value, y - 0.5 / zoom.value);
  }
  const moveBy = (x, y) => moveTo(number("--x") + x, number("--y") + y);
  const divideAt = (event) => {
    const place = stage.getBoundingClientRect();
    divide((100 * (event.clientX - place.left)) / place.width);
  };

  for (const select of article.querySelectorAll("select")) {
    select.addEventListener("change", () => { choose(); divide(split.value); });
  }
  split.addEventListener("input", () => divide(split.value));
  zoom.addEventListener("input", () => magnify(zoom.value));
  onDrag(stage, stage, divideAt, divideAt);
  onDrag(box, stage, (event) => event.stopPropagation(), (event, x, y) => moveBy(x, y));
  for (const pane of article.querySelectorAll(".pane")) {
    onDrag(pane, pane, () => {}, (event, x, y) => moveBy(-x / number("--zoom"), -y / number("--zoom")));
  }
  box.addEventListener("keydown", (event) => {
    const step = 0.1 / number("--zoom");
    const does = {
      ArrowLeft: () => moveBy(-step, 0), ArrowRight: () => moveBy(step, 0),
      ArrowUp: () => moveBy(0, -step), ArrowDown: () => moveBy(0, step),
      "+": () => magnify(Number(zoom.value) + 0.5), "-": () => magnify(zoom.value - 0.5),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
  });
  choose();
  divide(50);
  magnify(zoom.value);
}

// Plots take the colors of the page, light or dark, and the width of their cards.
const plots = document.querySelectorAll(".plotly-graph-div");
function colorPlots() {
  const ink = getComputedStyle(document.body).color;
  for (const plot of plots) Plotly.relayout(plot, { "font.color": ink });
}
const width = new ResizeObserver((entries) => entries.forEach((entry) => Plotly.Plots.resize(entry.target)));

for (const table of document.querySelectorAll("table")) { makeSortable(table); addTips(table); }
// A picture far below is made when it comes near, so that a page with many opens at once.
const near = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((each) => each.isIntersecting)) {
    near.unobserve(entry.target);
    makePicture(entry.target);
  }
}, { rootMargin: "800px" });
for (const article of document.querySelectorAll(".picture")) near.observe(article);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", colorPlots);
colorPlots();
for (const plot of plots) width.observe(plot);
