// Runs before the first paint, so that a chosen theme never flashes the other one. A classic script: modules wait.
(() => {
  const root = document.documentElement;
  const stored = () => {
    try {
      return localStorage.getItem("hpsearch-theme");
    } catch {
      return null; // storage may be forbidden
    }
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (stored() ?? (system.matches ? "dark" : "light")) === "dark";
  const apply = () => {
    root.dataset.theme = isDark() ? "dark" : "light";
    document.getElementById("theme")?.setAttribute("aria-pressed", String(isDark()));
    document.dispatchEvent(new CustomEvent("theme"));
  };
  apply();
  system.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      const next = isDark() ? "light" : "dark";
      try {
        localStorage.setItem("hpsearch-theme", next);
      } catch {
        root.dataset.theme = next;
      }
      apply();
    });
  });
})();
