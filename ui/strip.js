// The network as a strip of blocks: a button each, filled by the kept fraction. Buttons are made once and
// changed in place, so that focus and hover survive every update.

const WORDS = { done: "done", current: "being pruned", waiting: "waiting" };

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  if (!data) return;
  const list = parentElement.querySelector(".strip");
  list.classList.toggle("stale", Boolean(data.stale));
  while (list.children.length > data.blocks.length) list.lastChild.remove();
  data.blocks.forEach((block, index) => {
    let button = list.children[index];
    if (!button) {
      button = document.createElement("button");
      button.type = "button";
      button.innerHTML =
        '<span class="name"></span><span class="bar"><span></span></span><span class="kept"></span>';
      list.appendChild(button);
    }
    button.className = `${block.state}${index === data.picked ? " picked" : ""}`;
    button.setAttribute("aria-pressed", index === data.picked);
    button.title = `${block.name}: ${block.kept} of ${block.groups} ${block.unit}s kept, ${WORDS[block.state]}`;
    button.querySelector(".name").textContent = block.label;
    button.querySelector(".bar > span").style.width =
      block.state === "waiting" ? "0" : `${(100 * block.kept) / block.groups}%`;
    const mark = { done: "✓ ", current: "▸ ", waiting: "" }[block.state];
    button.querySelector(".kept").textContent = `${mark}${block.groups} → ${block.kept}`;
    button.onclick = () => setTriggerValue("pick", block.name);
  });
}
