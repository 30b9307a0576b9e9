// Numbers as people read them.

export function duration(seconds) {
  if (seconds < 0.0095) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const [hours, minutes, rest] = parts.map((part) => String(part).padStart(2, "0"));
  return parts[0] ? `${parts[0]}:${minutes}:${rest} h` : `${parts[1]}:${rest} min`;
}

// What moves by the second is shown by the second.
export function elapsed(seconds) {
  return seconds < 60 ? `${Math.floor(seconds)} s` : duration(seconds);
}

export function count(number) {
  if (number < 10_000) return String(number);
  if (number < 999_500) return `${(number / 1000).toFixed(number < 99_950 ? 1 : 0)}k`;
  return `${(number / 1e6).toFixed(2)}M`;
}

export function clock(epochSeconds) {
  const date = new Date(epochSeconds * 1000);
  return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

export const plural = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
