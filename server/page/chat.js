import { themeSwitch } from "./theme.js"; themeSwitch(document.getElementById("theme"));
