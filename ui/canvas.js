// Draws what changes while work runs: the map of groups, the residual, the scores. One canvas, redrawn
// in place, so nothing remounts or flickers. data.kind: "map" | "line" | "bars".

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);

function prepare(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

// The symbols of ispasp.figures.LOOKS, drawn in a square cell: 0 out, 1 candidate, 2 dropped, 3 added, 4 kept.
function symbol(pen, state, x, y, size, look, ground) {
  const pad = size > 12 ? 2 : 1;
  const side = size - 2 * pad;
  const [cx, cy] = [x + size / 2, y + size / 2];
  pen.fillStyle = pen.strokeStyle = look.colour;
  pen.lineWidth = Math.max(1.2, size / 10);
  if (state >= 3) {
    pen.beginPath();
    pen.roundRect(x + pad, y + pad, side, side, size > 12 ? 3 : 1);
    pen.fill();
    if (state === 3) {
      pen.strokeStyle = ground;
      pen.beginPath();
      pen.moveTo(cx - side * 0.3, cy);
      pen.lineTo(cx + side * 0.3, cy);
      pen.moveTo(cx, cy - side * 0.3);
      pen.lineTo(cx, cy + side * 0.3);
      pen.stroke();
    }
  } else if (state === 2) {
    pen.beginPath();
    pen.moveTo(cx - side * 0.34, cy - side * 0.34);
    pen.lineTo(cx + side * 0.34, cy + side * 0.34);
    pen.moveTo(cx + side * 0.34, cy - side * 0.34);
    pen.lineTo(cx - side * 0.34, cy + side * 0.34);
    pen.stroke();
  } else {
    pen.beginPath();
    pen.arc(cx, cy, state === 1 ? side * 0.32 : Math.max(1, side * 0.1), 0, 7);
    state === 1 ? pen.stroke() : pen.fill();
  }
}

// The largest cells with which all bands fit; few groups stay in one row, many wrap, and what still does not
// fit scrolls. data.bands is how many bands to make room for, so that cells keep their size as bands come.
function mapShape(data, width) {
  const left = 46;
  const room = width - left - 14;
  const bands = Math.max(data.bands, data.iterations.length, 1);
  let cell = Math.min(34, Math.floor(room / data.groups));
  let columns = data.groups;
  if (cell < 20) {
    const fit = () => Math.max(8, Math.floor(room / cell / 8) * 8); // whole eights are easier to count
    for (cell = 30; cell > 9; cell -= 1) {
      columns = fit();
      if (bands * (Math.ceil(data.groups / columns) * cell + 8) <= data.height) break;
    }
    columns = fit(); // the loop may have ended without a break, with smaller cells than it last tried
  } else {
    // Many iterations of few groups: smaller cells, so that more of them can be seen at once.
    cell = Math.max(Math.min(cell, 16), Math.min(cell, Math.floor(data.height / bands) - 4));
  }
  const rows = Math.ceil(data.groups / columns);
  const band = rows * cell + (rows > 1 ? 8 : 4);
  return { left, cell, columns, rows, band, height: Math.max(data.iterations.length, 1) * band + 4 };
}

function drawMap(canvas, data, width, style) {
  const { left, cell, columns, rows, band, height } = mapShape(data, width);
  const pen = prepare(canvas, width, height);
  const states = bytes(data.states);
  pen.textBaseline = "middle";
  data.iterations.forEach((t, row) => {
    const top = row * band + 2;
    pen.font = `${t === data.t ? 650 : 400} 13px ${style.font}`;
    pen.fillStyle = style.text;
    pen.fillText(`it. ${t}`, 4, top + (rows * cell) / 2);
    for (let group = 0; group < data.groups; group += 1) {
      const state = states[row * data.groups + group];
      const x = left + (group % columns) * cell;
      const y = top + Math.floor(group / columns) * cell;
      symbol(pen, state, x, y, cell, data.looks[state], style.ground);
      if (group === data.group && t === data.t) {
        pen.strokeStyle = style.text;
        pen.lineWidth = 2;
        pen.strokeRect(x + 0.5, y + 0.5, cell - 1, cell - 1);
      }
    }
  });
}

function drawLine(canvas, data, width, style) {
  const height = data.height;
  const pen = prepare(canvas, width, height);
  const values = floats(data.values);
  if (!values.length) return;
  const high = Math.max(...values) * 1.25 || 1;
  const x = (i) => 30 + (i + 0.5) * ((width - 50) / values.length);
  const y = (v) => height - 40 - (v / high) * (height - 50);
  pen.strokeStyle = pen.fillStyle = data.looks[4].colour;
  pen.lineWidth = 2;
  pen.beginPath();
  values.forEach((v, i) => (i ? pen.lineTo(x(i), y(v)) : pen.moveTo(x(i), y(v))));
  pen.stroke();
  pen.textAlign = "center";
  values.forEach((v, i) => {
    pen.fillStyle = data.looks[4].colour;
    pen.beginPath();
    pen.arc(x(i), y(v), 4.5, 0, 7);
    pen.fill();
    pen.fillStyle = style.text;
    pen.font = `12px ${style.font}`;
    if (values.length < 9 || i === 0 || i === values.length - 1) pen.fillText(v >= 0.0995 ? v.toFixed(3) : v.toPrecision(3), x(i), y(v) - 12);
    const t = data.iterations[i];
    if (values.length < 13 || t === 1 || t % 5 === 0) pen.fillText(`${t}`, x(i), height - 22);
  });
  pen.fillText("iteration", width / 2, height - 5);
}

function drawBars(canvas, data, width, style) {
  const height = data.height;
  const pen = prepare(canvas, width, height);
  const states = bytes(data.states);
  const part = height / data.panels.length;
  data.panels.forEach(({ title, values: encoded }, panel) => {
    const values = floats(encoded);
    const low = Math.min(0, ...values);
    const high = Math.max(0, ...values);
    const [top, bottom] = [panel * part + 26, panel * part + part - 8];
    const y = (v) => bottom - ((v - low) / (high - low || 1)) * (bottom - top);
    const step = (width - 8) / values.length;
    pen.font = `13px ${style.font}`;
    pen.fillStyle = style.text;
    pen.fillText(title, 4, top - 10);
    values.forEach((v, i) => {
      pen.fillStyle = data.looks[states[i]].colour;
      const [from, to] = [y(Math.max(v, 0)), y(Math.min(v, 0))];
      pen.fillRect(4 + i * step, from, Math.max(step * 0.85, 1), Math.max(to - from, 1));
    });
  });
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  if (!data) return;
  const frame = parentElement.querySelector(".frame");
  const canvas = parentElement.querySelector("canvas");
  const tip = parentElement.querySelector(".tip");
  const css = getComputedStyle(frame);
  const style = {
    text: css.getPropertyValue("--st-text-color") || css.color,
    ground: css.getPropertyValue("--st-background-color") || "#fff",
    font: css.getPropertyValue("--st-font") || "sans-serif",
  };
  const draw = () => {
    const width = frame.clientWidth;
    if (!width) return;
    ({ map: drawMap, line: drawLine, bars: drawBars })[data.kind](canvas, data, width, style);
  };
  canvas.setAttribute("aria-label", data.label);
  frame.style.height = `${data.height}px`;
  frame.style.overflowY = data.kind === "map" ? "auto" : "hidden";
  if (data.kind === "map") frame.setAttribute("tabindex", "0");
  const hint = parentElement.querySelector(".hint");
  const more = () => {
    hint.hidden = data.kind !== "map" || frame.scrollTop + frame.clientHeight >= canvas.clientHeight - 6;
  };
  const show = () => {
    frame.scrollTop = Math.max(0, data.iterations.indexOf(data.t)) * mapShape(data, frame.clientWidth).band;
  };
  frame.onscroll = more;
  draw();
  if (data.kind === "map" && frame.dataset.t !== `${data.groups} ${data.t}`) {
    frame.dataset.t = `${data.groups} ${data.t}`;
    show();
  }
  more();

  const hit = (event) => {
    const { left, cell, columns, rows, band } = mapShape(data, frame.clientWidth);
    const box = canvas.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left - left, event.clientY - box.top - 2];
    const [row, column] = [Math.floor(py / band), Math.floor(px / cell)];
    const inner = Math.floor((py - row * band) / cell);
    const group = inner * columns + column;
    const inside = column >= 0 && column < columns && inner >= 0 && inner < rows;
    return inside && row >= 0 && row < data.iterations.length && group < data.groups ? { row, group } : null;
  };
  canvas.onmousemove = (event) => {
    const found = data.kind === "map" ? hit(event) : null;
    canvas.style.cursor = found ? "pointer" : "default";
    tip.hidden = !found;
    if (!found) return;
    const state = bytes(data.states)[found.row * data.groups + found.group];
    tip.textContent =
      `${data.unit} ${found.group}, iteration ${data.iterations[found.row]}: ` +
      (state === 3 && data.iterations[found.row] === 1 ? data.first : data.looks[state].label);
    const box = frame.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX - box.left + 12, box.width - 230)}px`;
    tip.style.top = `${event.clientY - box.top + 16}px`;
  };
  canvas.onmouseleave = () => (tip.hidden = true);
  canvas.onclick = (event) => {
    const found = data.kind === "map" ? hit(event) : null;
    if (found) setTriggerValue("pick", { group: found.group, t: data.iterations[found.row] });
  };
  let drawn = frame.clientWidth;
  const watcher = new ResizeObserver(() => {
    if (frame.clientWidth === drawn) return;
    drawn = frame.clientWidth;
    draw();
    if (data.kind === "map") show(); // bands have another height now
    more();
  });
  watcher.observe(frame);
  return () => watcher.disconnect();
}
