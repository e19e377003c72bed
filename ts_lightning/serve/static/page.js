// The conversation: pictures, numbered regions, questions and streamed answers. Text of a model is only ever text.

import { RegionCanvas, stepColor } from "./regions.js";

const $ = (id) => document.getElementById(id);
const HINTS = { click: "click on a thing", box: "drag a box", polygon: "click the corners, double-click to close" };
let state = fresh();
let maxBytes = Infinity;
const canvas = new RegionCanvas($("canvas"), addRegion);

function fresh() {
  // sent: how many regions a question has had; their numbers are theirs for the whole conversation
  return { pictures: [], shown: 0, regions: [], sent: 0, turns: [], busy: false, stop: new AbortController() };
}

async function start() {
  const model = await (await fetch("api/model")).json();
  maxBytes = model.max_bytes;
  $("model").textContent = `${model.title}, regions as ${model.codec}`;
  for (const button of document.querySelectorAll("#tools button")) {
    button.hidden = !model.kinds.includes(button.dataset.kind);
    button.onclick = () => pick(button.dataset.kind);
  }
  $("task").append(...model.skills.map((skill) => new Option(skill, skill)));
  pick(model.kinds.includes("box") ? "box" : model.kinds[0]);
  draw();
}

function pick(kind) {
  canvas.cancel();
  canvas.kind = kind;
  $("hint").textContent = HINTS[kind];
  for (const button of document.querySelectorAll("#tools button")) {
    button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
  }
}

function say(text) {
  $("message").hidden = !text;
  $("message").textContent = text || "";
}

async function addFiles(files) {
  const mine = state;
  const wrong = [];
  say("");
  for (const file of files) {
    try {
      const megabytes = Math.ceil(file.size / 2 ** 20);
      if (file.size > maxBytes) throw new Error(`seen ${megabytes} MB, expected at most ${maxBytes / 2 ** 20} MB`);
      const headers = { "Content-Type": "application/octet-stream" };
      const answer = await fetch("api/image", { method: "POST", headers, body: file });
      const picture = await answer.json();
      if (!answer.ok) throw new Error(picture.error);
      const image = new Image();
      image.src = URL.createObjectURL(file);
      await image.decode();
      if (state !== mine) return URL.revokeObjectURL(image.src);
      state.pictures.push({ ...picture, image });
      state.shown = state.pictures.length - 1;
    } catch (error) {
      if (state !== mine) return;
      wrong.push(`${file.name}: ${error.message}`);
      say(wrong.join("; "));
    }
  }
  listPictures();
  listRegions(); // which say their picture where there are several
  draw();
}

function addRegion(points) {
  state.regions.push({ image: state.shown, points, removed: false });
  listRegions();
  draw();
}

// Earlier questions still name it: only a number that no question has had is given again.
function removeRegion(index) {
  state.regions[index].removed = true;
  freeNumbers();
  listRegions();
  draw();
}

function freeNumbers() {
  while (state.regions.length > state.sent && state.regions.at(-1).removed) state.regions.pop();
}

async function ask() {
  const mine = state; // "New conversation" puts another in its place, also while this one waits
  const question = $("question").value.trim();
  if (mine.busy) return;
  if (!question) return say("Write a question first.");
  const removed = [...question.matchAll(/#(\d{1,3})\b/g)].find(([, number]) => mine.regions[number - 1]?.removed);
  if (removed) return say(`question: seen ${removed[0]}, which was removed; expected a region below the picture`);
  say("");
  const user = { role: "user", text: question };
  const reply = { role: "model", text: "", boxes: [], badge: null, done: false, cut: false };
  const bubbles = [user, reply].map(bubble);
  const before = mine.sent;
  mine.turns.push(user, reply);
  mine.sent = mine.regions.length;
  mine.busy = true;
  $("question").value = "";
  $("turns").append(...bubbles);
  draw();
  try {
    const response = await fetch("api/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        images: mine.pictures.map((picture) => picture.id),
        regions: mine.regions.map(({ image, points }) => ({ image, points })),
        texts: mine.turns.slice(0, -1).map((turn) => turn.text),
        task: $("task").value,
        constrain: $("constrain").checked,
      }),
      signal: mine.stop.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error);
    for await (const event of events(response.body)) {
      if (state !== mine) return;
      if (event.error) throw new Error(event.error);
      if (event.task) reply.badge = { task: event.task, automatic: event.automatic };
      if (event.text !== undefined) {
        if (event.boxes.length > reply.boxes.length) mine.shown = event.boxes.at(-1).image;
        Object.assign(reply, { text: event.text, boxes: event.boxes });
      }
      if (event.done) Object.assign(reply, { done: true, cut: event.cut });
      fill(bubbles[1], reply);
      draw();
    }
  } catch (error) {
    if (state !== mine) return;
    mine.turns = mine.turns.filter((turn) => turn !== user && turn !== reply);
    for (const made of bubbles) made.remove();
    mine.sent = before; // a question that is not in the conversation has no numbers
    freeNumbers();
    const typing = $("question").value; // the next question, which stays
    if (!typing) $("question").value = question; // back to where it was written
    say(typing ? `${error.message} (not answered: ${question})` : error.message);
  }
  if (state !== mine) return;
  mine.busy = false;
  draw();
  if (document.activeElement === document.body) $("question").focus(); // the button that had it is no longer one
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) yield JSON.parse(line);
  }
}

// What changes while an answer comes. Nothing that can have the focus is made anew.
function draw() {
  const picture = state.pictures[state.shown] || null;
  const boxes = state.turns.at(-1)?.boxes || [];
  const here = (region) => region.image === state.shown;
  canvas.show(picture, regions().filter(here), labelled(boxes).filter(here));
  $("drop").hidden = Boolean(picture);
  $("send").disabled = $("box").disabled = state.busy;
  [...$("thumbs").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === state.shown)));
  $("turns").setAttribute("aria-busy", String(state.busy)); // read aloud when it is whole
  $("turns").scrollTop = $("turns").scrollHeight;
}

function regions() {
  return state.regions.map((region, i) => ({ ...region, number: i + 1 })).filter((region) => !region.removed);
}

function listPictures() {
  $("thumbs").replaceChildren(...(state.pictures.length > 1 ? state.pictures.map(thumb) : []));
}

function listRegions() {
  $("regions").replaceChildren(...regions().map(chip));
}

// "1", "2" ... where an answer has boxes in several steps; boxes of one place share a label ("1, 2").
function labelled(boxes) {
  if (!boxes.some((box) => box.step)) return boxes.map((box) => ({ ...box, label: "" }));
  const place = (box) => JSON.stringify([box.image, box.points]);
  return boxes.map((box) => {
    const steps = boxes.filter((other) => place(other) === place(box)).map((other) => other.step + 1);
    return { ...box, label: [...new Set(steps)].join(", ") };
  });
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function thumb(picture, index) {
  const button = element("button", "");
  const image = element("img", "");
  image.src = picture.image.src;
  image.alt = "";
  button.type = "button";
  button.title = `picture ${index + 1}`;
  button.append(image, element("span", "", String(index + 1)));
  button.onclick = () => {
    state.shown = index;
    draw();
  };
  return button;
}

function chip(region) {
  const kind = { 1: "click", 2: "box" }[region.points.length] || "polygon";
  const where = state.pictures.length > 1 ? ` on picture ${region.image + 1}` : "";
  const made = element("span", "chip");
  const name = element("button", "", `#${region.number} ${kind}${where}`);
  name.title = "Put it into the question";
  name.onclick = () => {
    const field = $("question");
    field.setRangeText(`#${region.number}`, field.selectionStart, field.selectionEnd, "end");
    field.focus();
  };
  const remove = element("button", "", "\u00d7");
  remove.title = "Remove";
  remove.setAttribute("aria-label", `Remove region ${region.number}`);
  remove.onclick = () => {
    removeRegion(region.number - 1);
    $("question").focus();
  };
  made.append(name, remove);
  return made;
}

function bubble(turn) {
  if (turn.role === "user") return element("li", "user", turn.text);
  const made = element("li", "model");
  fill(made, turn);
  return made;
}

function fill(made, turn) {
  const letters = Array.from(turn.text); // boxes count Unicode code points
  const text = (start, stop) => letters.slice(start, stop).join("");
  made.replaceChildren();
  let end = 0;
  for (const box of turn.boxes) {
    if (box.start < end) continue;
    made.append(text(end, box.start));
    const mark = element("mark", "", text(box.start, box.end));
    mark.style.borderColor = stepColor(box.step);
    made.append(mark);
    end = box.end;
  }
  made.append(turn.text ? text(end) : turn.done ? "(no answer)" : "\u2026");
  const cut = turn.cut ? [element("span", "cut", "cut off")] : [];
  if (turn.badge) {
    const how = turn.badge.automatic ? "automatic" : "forced";
    made.append(element("br", ""), element("span", `badge ${turn.badge.task}`, `${turn.badge.task} (${how})`), ...cut);
  }
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  ask();
};
$("box").onclick = () => {
  const question = $("question").value.trim();
  const asks = /\b(with (an? |its |their )?|give (an? |the )?)(bounding )?box(es)?\b/i; // "the blue box" does not
  if (question && !asks.test(question)) $("question").value = `${question} Answer with a box.`;
  ask();
};
$("file").onchange = () => {
  addFiles([...$("file").files]);
  $("file").value = "";
};
$("clear").onclick = () => {
  state.stop.abort();
  state.pictures.forEach((picture) => URL.revokeObjectURL(picture.image.src));
  state = fresh();
  say("");
  for (const turn of document.querySelectorAll("#turns li:not(.empty)")) turn.remove();
  listPictures();
  listRegions();
  draw();
};
document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return; // keys of an input method; Safari says it by the number alone
  if (event.key === "Escape" && !canvas.cancel() && regions().length) removeRegion(regions().at(-1).number - 1);
  if (event.key === "Enter" && !event.shiftKey && event.target === $("question")) {
    event.preventDefault();
    ask();
  }
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", name === "dragover");
    if (name === "drop" && event.dataTransfer) addFiles([...event.dataTransfer.files]);
  });
}
start();
