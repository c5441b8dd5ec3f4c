// Draws the error of the matrix that is selected on the axes of the figure that is there.
"use strict";
const known = JSON.parse(document.getElementById("curves").textContent);
const select = document.getElementById("matrix");
const figure = document.getElementById("error");
const scale = (value, low, high, [start, stop]) => start + ((value - low) / (high - low)) * (stop - start);

function draw() {
  const item = known.matrices[select.value];
  const x = (rank) => scale(rank, 0, item.most, known.x);
  const places = item.points.map(([rank, log]) => `${x(rank)},${scale(log, known.least, 0, known.y)}`);
  figure.querySelector(".curve").setAttribute("points", places.join(" "));
  const chosen = figure.querySelector(".curve-chosen");
  const place = x(item.rank === null ? item.most : item.rank);
  chosen.setAttribute("x1", place);
  chosen.setAttribute("x2", place);
  figure.querySelectorAll(".curve-tick").forEach((tick, number) => {
    tick.textContent = String((number / 2) * item.most);
  });
  document.getElementById("error-told").textContent = item.told;
}

select.addEventListener("change", draw);
