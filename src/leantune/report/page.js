// The answer's selects and sliders, and the start of the charts and tables. Text from records goes in as text only.
const GIB = 2 ** 30, MIB = 2 ** 20;

const size = (bytes) => bytes >= GIB ? `${(bytes / GIB).toFixed(2)} GiB` : `${(bytes / MIB).toFixed(1)} MiB`;
const list = (names) => names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// Every combination that can be asked about: a measured group, or a predicted shape with the quality of a group.
function choices(data) {
  const found = data.shapes.flatMap((shape) => (shape.evidence.length ? shape.evidence : [null]).map((id) => {
    const group = id === null ? null : data.groups[id];
    const methods = shape.methods.map((method) => {
      const like = group?.methods.find((other) => other.name === method.name)
        ?? group?.methods.find((other) => other.name === method.evidence);
      const { tier = null, quality = null, low = null, high = null, loss = null } = like ?? {};
      return { ...method, tier, quality, low, high, loss, seconds: null, evidence: like?.name ?? null };
    });
    const setting = `${shape.kind.replace("_", " ")}, batch ${shape.batch} of ${shape.seq} tokens, ${shape.dtype}`;
    const evidence = group && `quality as on ${group.model}${group.key ? `, ${group.key}` : ""}`;
    return { predicted: true, model: shape.model, task: group?.task ?? "(no task measured)", metric: group?.metric,
      setting: evidence ? `${setting}; ${evidence}` : setting, shape, source: group?.model, best: group?.best, methods };
  }));
  return [...found, ...data.groups.map((group) => ({ ...group, predicted: false, setting: group.key }))];
}

// The method to use within limits {memory, seconds, loss} (bytes, seconds, units of the metric; null for none), and why.
function decide(choice, limits) {
  const out = { memory: [], time: [], loss: [], failed: [], unknown: [] }, within = [];
  for (const method of choice.methods) {
    if (method.status !== "ok") out.failed.push(method);
    else if (limits.memory !== null && method.memory > limits.memory) out.memory.push(method);
    else if (method.memory === null) out.failed.push(method);
    else if (limits.seconds !== null && method.seconds > limits.seconds) out.time.push(method);
    else if (method.quality === null) out.unknown.push(method);
    else if (limits.loss !== null && method.loss > limits.loss) out.loss.push(method);
    else within.push(method);
  }
  within.sort((a, b) => a.loss - b.loss || a.memory - b.memory);
  const [best] = within.filter((method) => method.tier !== null).concat(within);
  const tied = within.filter((method) => method === best || (method.tier !== null && method.tier === best.tier)).sort((a, b) => a.memory - b.memory || a.loss - b.loss);
  const rest = within.filter((method) => !tied.includes(method));
  return { use: tied[0] ?? null, tied: tied.slice(1), beaten: rest.filter((m) => m.tier !== null), unplaced: rest.filter((m) => m.tier === null), out };
}

const scored = (choice, method) => `${choice.metric} ${method.quality.toFixed(3)}`
  + (method.low === null ? "" : ` [${method.low.toFixed(3)}, ${method.high.toFixed(3)}]`);
const named = (methods, figure) => list(methods.map((method) => `${method.name} (${figure(method)})`));

// The answer as {verdict, paragraphs, points}; plain text.
function explain(choice, limits) {
  const { use, tied, beaten, unplaced, out } = decide(choice, limits);
  const budget = limits.memory === null ? "" : ` within ${size(limits.memory)}`;
  const need = (method) => size(method.memory), paragraphs = [], points = [];
  const best = choice.methods.find((method) => method.name === choice.best);
  if (use) {
    const full = choice.methods.find((method) => method.name === "full" && method.memory !== null);
    const beside = full && full !== use ? `; full fine-tuning needs ${need(full)}` : "";
    if (choice.predicted) {
      const { batch, seq, dtype } = choice.shape;
      const gib = Object.keys(use.batches).map(Number).sort((a, b) => b - a).find((g) => g * GIB <= limits.memory && use.batches[g] !== null);
      paragraphs.push(`Memory: it needs ${need(use)} at batch ${batch} of ${seq} tokens in ${dtype} (predicted, 1 GiB of it for the CUDA context)${beside}.`
        + (gib ? ` The largest batch predicted to fit into ${gib} GiB is ${use.batches[gib]}.` : ""));
      if (!out.memory.length) paragraphs.push(`All ${plural(choice.methods.length - out.failed.length, "stack")} that could be predicted fit, so memory alone rules none out.`);
    } else {
      paragraphs.push(`Memory: its peak is ${need(use)}${beside}.` + (use.seconds === null ? "" : ` Time: its median step takes ${(1000 * use.seconds).toFixed(0)} ms.`));
    }
    const proxy = choice.predicted ? `Quality was not measured on ${choice.model}; the evidence is ${choice.source}, another model, on ${choice.task}: there` : "Quality:";
    const like = use.evidence && use.evidence !== use.name ? ` (measured for ${use.evidence})` : "";
    const top = best && best.name !== use.name ? `, ${use.loss.toFixed(3)} from the best, ${best.name}` : choice.best === use.name ? ", the best of all" : `, ${use.loss.toFixed(3)} from the best, ${choice.best}`;
    paragraphs.push(`${proxy} it has ${scored(choice, use)}${like}${top}.`);
    if (use.tier === null) paragraphs.push("It is not placed in a tier: its scores vary far more over seeds than the others'.");
    if (tied.length) paragraphs.push(`The evidence does not tell ${list(tied.map((m) => m.name))} apart from it in quality; ${tied.length > 1 ? "they need" : "it needs"} no less memory: ${named(tied, need)}.`);
    if (beaten.length) points.push(`Within the limits, but in a lower tier of quality: ${named(beaten, (m) => scored(choice, m))}.`);
    if (unplaced.length) points.push(`Within the limits, but not placed, as ${unplaced.length > 1 ? "their" : "its"} scores vary far more over seeds than the others': ${named(unplaced, (m) => scored(choice, m))}.`);
  }
  if (out.memory.length) points.push(`Ruled out by memory: ${named(out.memory, need)}.`);
  if (out.time.length) points.push(`Ruled out by step time: ${named(out.time, (m) => `${(1000 * m.seconds).toFixed(0)} ms`)}.`);
  if (out.loss.length) points.push(`Ruled out by quality: ${named(out.loss, (m) => `loses ${m.loss.toFixed(3)}`)}.`);
  if (out.unknown.length) points.push(`Fits, but its quality was not measured: ${named(out.unknown, need)}.`);
  if (out.failed.length) points.push(`No result: ${named(out.failed, (m) => m.reason || m.status)}.`);
  return { use: use?.name ?? null, before: use ? "Use " : "No method ", after: use ? ` to fine-tune ${choice.model} on ${choice.task}${budget}.`
    : `with a measured quality meets these limits for ${choice.model} on ${choice.task}.`, paragraphs, points };
}

// ------------------------------------------------------------------ the page

const $ = (id) => document.getElementById(id);

function element(tag, text, name) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

// The first value is chosen: choices come with those of the most methods first.
function fill(select, values) {
  select.replaceChildren(...[...new Set(values)].map((value) => new Option(value, value)));
}

function slider(input, min, max, step, value) {
  Object.assign(input, { min, max, step });
  input.value = value;
}

function startAnswer(data) {
  const all = choices(data);
  const model = $("answer-model"), task = $("answer-task"), setting = $("answer-setting");
  const memory = $("budget-memory"), time = $("budget-time"), loss = $("budget-loss");
  let choice;

  for (const [label, predicted] of [["Paper scale: memory predicted", true], ["Measured here", false]]) {
    const names = [...new Set(all.filter((one) => one.predicted === predicted).map((one) => one.model))];
    const group = document.createElement("optgroup");
    group.label = label;
    group.append(...names.map((name) => { const option = new Option(name, name); option.dataset.predicted = predicted; return option; }));
    if (names.length) model.append(group);
  }

  function ofModel() {
    const { value, dataset } = model.selectedOptions[0];
    return all.filter((one) => one.model === value && String(one.predicted) === dataset.predicted);
  }
  function pickModel() { fill(task, ofModel().map((one) => one.task)); pickTask(); }
  function pickTask() { fill(setting, ofModel().filter((one) => one.task === task.value).map((one) => one.setting)); pickSetting(); }
  function pickSetting() {
    choice = ofModel().find((one) => one.task === task.value && one.setting === setting.value);
    const known = (name) => choice.methods.map((method) => method[name]).filter((number) => number !== null);
    const peaks = known("memory").map((bytes) => bytes / MIB), steps = known("seconds").map((s) => 1000 * s);
    if (choice.predicted) slider(memory, 1, Math.max(80, Math.ceil(Math.max(...peaks) / 1024)), 1, data.firstGib);
    else slider(memory, Math.floor(Math.min(...peaks)), Math.ceil(Math.max(...peaks)), 1, Math.ceil(Math.max(...peaks)));
    time.disabled = !steps.length;
    slider(time, 0, steps.length ? Math.ceil(Math.max(...steps)) : 1, 1, steps.length ? Math.ceil(Math.max(...steps)) : 1);
    const worst = Math.ceil(1000 * Math.max(0.001, ...known("loss"))) / 1000;
    slider(loss, 0, worst, 0.001, worst);
    show();
  }
  function show() {
    const atEnd = (input) => Number(input.value) >= Number(input.max);
    const bytes = Number(memory.value) * (choice.predicted ? GIB : MIB);
    const limits = { memory: bytes, seconds: time.disabled ? null : Number(time.value) / 1000, loss: atEnd(loss) ? null : Number(loss.value) };
    const words = [
      [memory, "shown-memory", size(bytes)],
      [time, "shown-time", time.disabled ? "not known at this scale" : `${time.value} ms`],
      [loss, "shown-loss", limits.loss === null ? "any" : `${limits.loss.toFixed(3)} ${choice.metric ?? ""}`],
    ];
    for (const [input, id, text] of words) { $(id).textContent = text; input.setAttribute("aria-valuetext", text); }
    const told = explain(choice, limits);
    const verdict = element("p", told.before, "verdict");
    verdict.append(element("strong", told.use ?? ""), told.after);
    const points = document.createElement("ul");
    points.append(...told.points.map((text) => element("li", text)));
    $("answer-text").replaceChildren(verdict, ...(told.use ?? "").split("+").map((part) => part.split("@")[0]).filter((name) => data.about[name]?.summary).map(about), ...told.paragraphs.map((text) => element("p", text)), ...(told.points.length ? [points] : []));
  }

  // What a part of the answer is, and where its page is.
  function about(name) {
    const line = element("p", `${name}: ${data.about[name].summary} `), link = element("a", `More about ${name}`);
    link.href = data.about[name].page;
    line.append(link);
    return line;
  }

  model.addEventListener("change", pickModel);
  task.addEventListener("change", pickTask);
  setting.addEventListener("change", pickSetting);
  for (const input of [memory, time, loss]) input.addEventListener("input", show);
  const first = [...model.options].find((option) => option.value === data.first && option.dataset.predicted === "true");
  if (first) first.selected = true;
  pickModel();
}

function draw(figure) {
  const spec = figure.querySelector("script[type='application/json']");
  const plot = figure.querySelector(".plot");
  window.vegaEmbed(plot, JSON.parse(spec.textContent), { renderer: "svg", actions: false, tooltip: { theme: "custom" } });
}

// Charts are drawn when they come near the window, or before printing; there may be hundreds.
function startCharts() {
  const waiting = new Set(document.querySelectorAll("figure[id^='chart-']"));
  const start = (figure) => { if (waiting.delete(figure)) { watch.unobserve(figure); draw(figure); } };
  const watch = new IntersectionObserver((seen) => seen.filter((one) => one.isIntersecting).forEach((one) => start(one.target)), { rootMargin: "600px" });
  waiting.forEach((figure) => watch.observe(figure));
}

function startTables() {
  const isDark = window.matchMedia("(prefers-color-scheme: dark)");
  const theme = () => document.documentElement.classList.toggle("dark", isDark.matches); // what DataTables goes by
  isDark.addEventListener("change", theme);
  theme();
  for (const table of document.querySelectorAll("main table:not(.plain)")) {
    const box = table.closest(".scroll"), label = box.getAttribute("aria-label");
    const csv = { extend: "csv", text: "Save as CSV", filename: table.id, exportOptions: { escapeExcelFormula: true } };
    const paging = table.tBodies[0].rows.length > 25;
    new window.DataTable(table, {
      order: [], paging, pageLength: 25, autoWidth: false,
      layout: { topStart: { buttons: [csv] }, topEnd: "search", bottomStart: paging ? "info" : null, bottomEnd: paging ? "paging" : null },
    });
    table.closest(".dt-container").querySelector("nav")?.setAttribute("aria-label", `Pages of ${table.caption.textContent}`);
    const inner = table.closest(".dt-layout-table"); // the search box stays in place, the table scrolls
    for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
    Object.entries({ tabindex: "0", role: "group", "aria-label": label }).forEach(([name, value]) => inner.setAttribute(name, value));
  }
}

if (typeof document !== "undefined") {
  if ($("choices")) startAnswer(JSON.parse($("choices").textContent));
  startCharts();
  startTables();
}
