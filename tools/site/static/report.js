// One switch folds and unfolds the code of a page. What the reader chose holds for all pages.
document.addEventListener("DOMContentLoaded", () => {
  const folds = document.querySelectorAll("details.above-input"), button = document.getElementById("code-switch");
  if (!button || !folds.length) return;
  const show = (shown) => {
    for (const fold of folds) fold.open = shown;
    button.textContent = shown ? "Hide code" : "Show code";
  };
  button.addEventListener("click", () => {
    const shown = localStorage.getItem("code") !== "shown";
    localStorage.setItem("code", shown ? "shown" : "folded");
    show(shown);
  });
  button.hidden = false;
  show(localStorage.getItem("code") === "shown");
});

// Paper is white.
const root = document.documentElement;
let theme;
addEventListener("beforeprint", () => { theme = root.dataset.theme; root.dataset.theme = "light"; });
addEventListener("afterprint", () => { root.dataset.theme = theme; });
