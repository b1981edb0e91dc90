// A small line of values from 0 to 100 over time.

const SVG = "http://www.w3.org/2000/svg";

export function sparkline(label, values) {
  const svg = document.createElementNS(SVG, "svg");
  const step = 240 / (values.length - 1);
  const points = values.map((value, index) => `${(index * step).toFixed(1)},${(31 - value * 0.3).toFixed(1)}`);
  const line = document.createElementNS(SVG, "polyline");
  const attributes = { class: "spark", viewBox: "0 0 240 32", preserveAspectRatio: "none", role: "img" };
  for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
  svg.setAttribute("aria-label", `${label}: from ${Math.round(values[0])} to ${Math.round(values.at(-1))} percent`);
  line.setAttribute("points", points.join(" "));
  svg.append(line);
  return svg;
}
