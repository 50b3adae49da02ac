// Sorts a table by a column when its heading is pressed; without scripts the table stands in the order of the run.
document.querySelectorAll("table.sortable th").forEach((th, column) => {
  const button = document.createElement("button");
  button.textContent = th.textContent;
  th.replaceChildren(button);
  let ascending = true;
  button.addEventListener("click", () => {
    const body = th.closest("table").tBodies[0];
    const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const [p, q] = [parseFloat(x), parseFloat(y)];
      return isNaN(p) || isNaN(q) ? x.localeCompare(y) : p - q;
    });
    if (!ascending) rows.reverse();
    ascending = !ascending;
    body.append(...rows);
  });
});
