// The picture with its regions: clicks, boxes and polygons in, everything in [0, 1] of the displayed picture.

const STEP_COLORS = ["#e6194b", "#0a6cff", "#f58231", "#911eb4", "#00a3b4", "#b8860b"];
export const stepColor = (step) => STEP_COLORS[step % STEP_COLORS.length];
const REGION_COLOR = "#ffd60a";
const NEAR = 0.02; // a click this close to a polygon's first point closes it

export class RegionCanvas {
  constructor(canvas, onRegion) {
    this.canvas = canvas;
    this.onRegion = onRegion;
    this.kind = "box";
    this.picture = null; // {image, width, height}
    this.regions = []; // [{number, points}] on this picture
    this.answers = []; // [{step, points, label}] on this picture
    this.draft = [];
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", () => this.cancel());
    canvas.addEventListener("dblclick", () => this.closePolygon());
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
  }

  show(picture, regions, answers) {
    if (picture !== this.picture) this.draft = [];
    Object.assign(this, { picture, regions, answers });
    this.draw();
  }

  // Escape: true when there was a half-drawn region to drop.
  cancel() {
    const had = this.draft.length > 0;
    this.draft = [];
    this.draw();
    return had;
  }

  point(event) {
    const frame = this.canvas.getBoundingClientRect();
    const clip = (value) => Math.min(1, Math.max(0, value));
    return [clip((event.clientX - frame.left) / frame.width), clip((event.clientY - frame.top) / frame.height)];
  }

  down(event) {
    if (!this.picture || event.button) return;
    const point = this.point(event);
    if (this.kind === "click") this.finish([point]);
    if (this.kind === "box") {
      this.canvas.setPointerCapture(event.pointerId);
      this.draft = [point, point];
    }
    if (this.kind === "polygon") {
      const first = this.draft[0];
      const closes = this.draft.length > 2 && Math.hypot(first[0] - point[0], first[1] - point[1]) < NEAR;
      if (closes) this.closePolygon();
      else this.draft.push(point);
    }
    this.draw();
  }

  move(event) {
    if (this.kind === "box" && this.draft.length) {
      this.draft[1] = this.point(event);
      this.draw();
    }
  }

  up() {
    if (this.kind !== "box" || !this.draft.length) return;
    const [[a, b], [c, d]] = this.draft;
    this.draft = [];
    const box = [[Math.min(a, c), Math.min(b, d)], [Math.max(a, c), Math.max(b, d)]];
    if (box[1][0] - box[0][0] > 0.005 && box[1][1] - box[0][1] > 0.005) this.finish(box);
    this.draw();
  }

  closePolygon() {
    if (this.kind !== "polygon") return;
    const points = this.draft.filter((p, i) => !i || Math.hypot(p[0] - this.draft[i - 1][0], p[1] - this.draft[i - 1][1]) > 0.003);
    this.draft = [];
    if (points.length > 2) this.finish(points);
    this.draw();
  }

  finish(points) {
    this.draft = [];
    this.onRegion(points);
  }

  draw() {
    const { canvas, picture } = this;
    canvas.hidden = !picture;
    if (!picture) return;
    const frame = canvas.parentElement.getBoundingClientRect();
    const scale = Math.min(frame.width / picture.width, frame.height / picture.height);
    const width = Math.max(1, Math.round(picture.width * scale));
    const height = Math.max(1, Math.round(picture.height * scale));
    const dense = window.devicePixelRatio || 1;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.width = width * dense;
    canvas.height = height * dense;
    const pen = canvas.getContext("2d");
    pen.scale(dense, dense);
    pen.drawImage(picture.image, 0, 0, width, height);
    const draw = (points, color, label, open) => outline(pen, points.map(([x, y]) => [x * width, y * height]), color, label, open);
    for (const { points, number } of this.regions) draw(points, REGION_COLOR, `#${number}`, false);
    // Steps are numbered by their place in the answer, whatever number the model wrote; a plain answer has none.
    for (const { points, step, label } of this.answers) draw(points, stepColor(step), label, false);
    if (this.draft.length) draw(this.draft, REGION_COLOR, "", this.kind === "polygon");
  }
}

function outline(pen, points, color, label, open) {
  pen.beginPath();
  if (points.length === 1) pen.arc(points[0][0], points[0][1], 6, 0, 2 * Math.PI);
  else if (points.length === 2 && !open) {
    const [[a, b], [c, d]] = points;
    pen.rect(a, b, c - a, d - b);
  } else {
    points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    if (!open) pen.closePath();
  }
  pen.lineJoin = "round";
  pen.lineWidth = 5;
  pen.strokeStyle = "#ffffffcc";
  pen.stroke();
  pen.lineWidth = 2.5;
  pen.strokeStyle = color;
  pen.stroke();
  if (!label) return;
  const [x, y] = points.reduce((best, p) => (p[1] < best[1] ? p : best));
  pen.font = "bold 13px system-ui, sans-serif";
  const wide = pen.measureText(label).width + 10;
  const left = Math.max(0, Math.min(x, pen.canvas.clientWidth - wide));
  const top = Math.max(0, y - 22);
  pen.fillStyle = color;
  pen.beginPath();
  pen.roundRect(left, top, wide, 19, 5);
  pen.fill();
  pen.fillStyle = color === REGION_COLOR ? "#1d1d1f" : "#ffffff";
  pen.fillText(label, left + 5, top + 14);
}
