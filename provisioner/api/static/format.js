// Turns numbers and times into text, as lvp does: binary units, at most three digits.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(count) {
  if (count === undefined || count === null) return "";
  let unit = 0;
  let value = count;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 10 ? Number(value.toFixed(1)) : Math.round(value)} ${UNITS[unit]}`;
}

export function duration(seconds) {
  if (seconds < 1) return seconds < 0.01 ? "< 10 ms" : `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? Number(seconds.toFixed(1)) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export function percent(value) {
  return `${Math.round(value)} %`;
}

export function moment(text) {
  const time = new Date(text);
  return time.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

// The last part of a url's path, which names the image for people.
export function fileName(url) {
  return url.split(/[?#]/)[0].split("/").filter(Boolean).pop() ?? url;
}

export function sentence(text) {
  const words = text.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export function shortDigest(digest) {
  return digest.replace(/^sha256:/, "").slice(0, 12);
}
