// The chat page: sends a question to /score, shows the answer as it arrives, keeps the conversation's id.
// The turns shown are kept in this browser; what the model is reminded of is kept by the app, under the id.
"use strict";

const STORAGE = "phiflow-chat";
const form = document.getElementById("form");
const question = document.getElementById("question");
const send = document.getElementById("send");
const list = document.getElementById("turns");
let chat = load();

function load() {
  try {
    const saved = JSON.parse(localStorage.getItem(STORAGE));
    if (saved && Array.isArray(saved.turns)) return saved;
  } catch {
    // Nothing usable was saved.
  }
  return { id: "", turns: [] };
}

function save() {
  localStorage.setItem(STORAGE, JSON.stringify(chat));
}

function show(kind, text, parent) {
  const element = document.createElement("div");
  element.className = kind;
  element.textContent = text;
  parent.append(element);
  list.scrollTop = list.scrollHeight;
  return element;
}

function showTurn(turn) {
  const parent = show("turn", "", list);
  show("question", turn.question, parent);
  const answer = show("answer", turn.answer, parent);
  const deployment = show("deployment", turn.deployment || "", parent);
  return { parent, answer, deployment };
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
  }
}

async function explain(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    message = "The chat app answered with status " + response.status + ".";
  }
  // Prompt flow puts the node and the kind of error before the sentence that is for people.
  return message.replace(/^Execution failure in '\w+': \(\w+\) /, "");
}

async function ask(text) {
  const turn = { question: text, answer: "", deployment: "" };
  const shown = showTurn(turn);
  try {
    const response = await fetch("/score", {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
      body: JSON.stringify({ question: text, conversation_id: chat.id }),
    });
    if (!response.ok) throw new Error(await explain(response));
    for await (const event of events(response)) {
      if (event.answer && event.answer.error) throw new Error(event.answer.error);
      if (event.conversation_id) chat.id = event.conversation_id;
      if (event.deployment) turn.deployment = event.deployment;
      turn.answer += event.answer || "";
      shown.answer.textContent = turn.answer;
      shown.deployment.textContent = turn.deployment;
      list.scrollTop = list.scrollHeight;
    }
    if (!turn.answer) throw new Error("The answer is empty.");
  } catch (error) {
    const broken = error instanceof TypeError;
    show("error", broken ? "The chat app cannot be reached, or the answer broke off." : error.message, shown.parent);
  }
  shown.parent.dataset.done = "true";
  if (turn.answer) {
    chat.turns.push(turn);
    save();
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || send.disabled) return;
  question.value = "";
  send.disabled = true;
  await ask(text);
  send.disabled = false;
  question.focus();
});

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

document.getElementById("new").addEventListener("click", () => {
  chat = { id: "", turns: [] };
  save();
  list.replaceChildren();
  question.focus();
});

chat.turns.forEach(showTurn);
