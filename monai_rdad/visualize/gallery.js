"use strict";
(() => {
  const gallery = document.getElementById("gallery");
  const cards = [...gallery.querySelectorAll(".case")];
  const sort = document.getElementById("sort");
  const filter = document.getElementById("filter");
  const status = document.getElementById("status");
  const dialog = document.getElementById("enlarged");
  const stage = dialog.querySelector(".stage");
  const place = dialog.querySelector(".bar span");
  let shown = cards;
  let current = 0;

  // "<key>:<1 or -1>": ascending or descending. Equal cards keep the order of the page, worst errors first.
  const compare = (key, sign) => (a, b) =>
    key === "name"
      ? sign * a.dataset.name.localeCompare(b.dataset.name, "en", { numeric: true })
      : sign * (Number(a.dataset[key]) - Number(b.dataset[key]));

  const matches = (card) =>
    filter.value === "all" || card.dataset.label === filter.value || card.dataset.outcome === filter.value;

  function arrange() {
    const [key, sign] = sort.value.split(":");
    const sorted = [...cards].sort(compare(key, Number(sign)));
    gallery.append(...sorted);
    for (const card of cards) card.hidden = !matches(card);
    shown = sorted.filter(matches);
    status.textContent = `${shown.length} of ${cards.length} cases`;
  }

  function show(index) {
    current = (index + shown.length) % shown.length;
    const copy = shown[current].cloneNode(true);
    copy.removeAttribute("id");
    copy.querySelector("h3").id = "enlarged-name";
    stage.replaceChildren(copy);
    place.textContent = `${current + 1} of ${shown.length}`;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  for (const card of cards) {
    card.querySelector(".open").hidden = false;
    card.querySelector(".open").addEventListener("click", () => show(shown.indexOf(card)));
    card.querySelector(".panels").addEventListener("click", () => show(shown.indexOf(card)));
  }
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(current + step);
  });
  dialog.querySelector(".previous").addEventListener("click", () => show(current - 1));
  dialog.querySelector(".next").addEventListener("click", () => show(current + 1));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => {
    stage.replaceChildren();
    shown[current].querySelector(".open").focus();
  });
  sort.addEventListener("change", arrange);
  filter.addEventListener("change", arrange);
  document.getElementById("controls").hidden = false;
  arrange();
})();
