const value = cell => {
  const marked = cell.dataset.v ?? cell.querySelector("[data-v]")?.dataset.v;
  return marked === undefined ? cell.textContent.trim().toLowerCase() : Number(marked);
};
const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
  : typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b))
  : typeof a === "number" ? -1 : 1;
document.addEventListener("click", event => {
  const head = event.target.closest("th button")?.parentElement;
  if (!head) return;
  const up = head.ariaSort !== "ascending", body = head.closest("table").tBodies[0];
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.ariaSort = up ? "ascending" : "descending";
  const keyed = [...body.rows].map(row => [value(row.cells[head.cellIndex]), row]);
  keyed.sort(([a], [b]) => a === "" || b === "" || up ? order(a, b) : order(b, a));
  body.append(...keyed.map(([, row]) => row));
});
document.addEventListener("input", event => {
  const words = event.target.value.toLowerCase();
  for (const row of event.target.closest("figure").querySelector("tbody").rows)
    row.hidden = !row.textContent.toLowerCase().includes(words);
});
