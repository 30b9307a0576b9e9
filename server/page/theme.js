// Light, dark, or as the system has it. A page's `<select id="theme">` chooses; the choice is kept.

const KEY = "smolgate-theme";

function kept() {
  try {
    return localStorage.getItem(KEY) ?? "system";
  } catch {
    return "system"; // a browser that keeps nothing
  }
}

function apply(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

function keep(theme) {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // it holds for this page alone
  }
}

export function themeSwitch(select) {
  select.value = kept();
  select.addEventListener("change", () => {
    keep(select.value);
    apply(select.value);
  });
  addEventListener("storage", (event) => {
    if (event.key !== KEY) return;
    select.value = kept();
    apply(select.value);
  });
}

apply(kept());
