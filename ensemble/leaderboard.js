(() => {
  const $ = query => document.querySelector(query), {tasks, steps} = JSON.parse($("#data").textContent);
  const packs = [...document.querySelectorAll(".pack")], PAGE = 50, TOP = 30, FEW = 10, ALPHA = 0.05;
  const form = $("#filter"), pair = $("#pair"), state = {show: "differ", page: 0};

  // Text from files reaches the page through append and setAttribute only, so that none of it is read as HTML.
  const fill = (e, props, kids) => {
    for (const [key, value] of Object.entries(props))
      if (value !== false && value != null) e.setAttribute(key, value === true ? "" : value);
    e.append(...kids.filter(kid => kid != null));
    return e;
  };
  const el = (tag, props = {}, ...kids) => fill(document.createElement(tag), props, kids);
  const svg = (tag, props = {}, ...kids) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, kids);

  const fixed = (x, digits = 3) => x.toFixed(digits).replace("-", "−");
  const signed = x => (x > 0 ? "+" : "") + fixed(x).replace(/^−(?=[0.]+$)/, "");
  const range = ([, low, high]) => `${fixed(low)} to ${fixed(high)}`;
  const count = x => x >= 100 ? Math.round(x).toLocaleString("en") : String(+x.toPrecision(3));
  const chance = p => p < 0.001 ? p.toExponential(1).replace("-", "−") : p.toFixed(p < 0.1 ? 3 : 2);
  const value = x => x === null || x === undefined ? "none" : String(x);

  const significant = v => v.against && v.against.p_holm < ALPHA;
  function difference(v) {
    if (!v.against) return [v === task.reference ? "reference" : ""];
    const d = v.against.difference, up = d[0] > 0;
    const said = el("span", {class: "sr"}, ` ${up ? "better" : "worse"} than the reference`);
    const mark = significant(v) ? el("span", {class: up ? "better" : "worse"}, `${up ? "▲" : "▼"} ${signed(d[0])}`, said) : signed(d[0]);
    return [mark, el("span", {class: "range"}, `${signed(d[1])} to ${signed(d[2])}`)];
  }
  function scored(v) {
    if (!v.score) return [];
    const [low, high] = task.span, at = x => `${(100 * (x - low) / (high - low || 1)).toFixed(1)}%`;
    const [mean, a, b] = v.score, width = `${(100 * (b - a) / (high - low || 1)).toFixed(1)}%`;
    return [el("strong", {}, fixed(mean)), el("span", {class: "track", "aria-hidden": "true"},
      el("i", {style: `left: ${at(a)}; width: ${width}`}), el("b", {style: `left: ${at(mean)}`})), el("span", {class: "range"}, range(v.score))];
  }
  const spread = key => ({of: v => v.consistency[key]?.[0], cell: v => {
    const x = v.consistency[key];
    return x ? [el("span", x.length > 2 ? {title: `95% interval ${range(x)}`} : {}, fixed(x[0]))] : [];
  }});
  // of: what to sort by, null or undefined last. down: large values first at the first click.
  const COLUMNS = [
    {key: "name", title: "variant", of: v => v.name, cell: named},
    {key: "score", title: "score", down: true, of: v => v.score?.[0], cell: scored, says: "Mean over the questions with its 95% interval."},
    {key: "difference", title: "difference", down: true, cell: difference, filled: v => v.against,
      of: v => v.against?.difference[0] ?? (v === task.reference ? 0 : null),
      says: "Mean of the paired differences to the reference, with its 95% interval."},
    {key: "p", title: "Holm p", of: v => v.against?.p_holm, cell: v => v.against ? [chance(v.against.p_holm)] : [],
      says: "p of the difference, corrected by Holm for the number of variants compared with the reference."},
    {key: "orders", title: "orders per question", of: v => v.orders, cell: v => v.orders == null ? [] : [count(v.orders)],
      says: "Prompts, mean over the questions: each order of the options is one."},
    {key: "tokens", title: "tokens sent", of: v => v.tokens, cell: v => v.tokens == null ? [] : [count(v.tokens)],
      says: "Tokens per question that do not come from the prefix cache; an estimate."},
    {key: "rstd", title: "RStd", ...spread("rstd"), says: "Standard deviation of the recalls of the options: 0 where no position is preferred."},
    {key: "flip_rate", title: "flip rate", ...spread("flip_rate"), says: "How often another order of the options changes the answer."},
    {key: "circular_accuracy", title: "CircularEval", down: true, ...spread("circular_accuracy"), says: "Share of questions that are right in every cyclic order of the options."},
    {key: "ece", title: "ECE", ...spread("ece"), says: "Expected calibration error: mean gap between confidence and share of right answers."},
  ];

  function named(v) {
    const name = el("button", {type: "button", class: "name", title: "Compare"}, v.name), badges = [];
    if (v === task.best) badges.push(el("span", {class: "badge good"}, "highest"));
    if (v === task.reference) badges.push(el("span", {class: "badge"}, "reference"));
    if (v.pareto) badges.push(el("span", {class: "badge good"}, "◆ Pareto"));
    name.addEventListener("click", () => compare(v));
    return [name, ...badges.flatMap(badge => [" ", badge])];
  }

  // ---- one task: its columns, rows and filters are made once, then sorted and hidden ----
  let task;
  tasks.forEach((t, i) => {
    t.pack = packs[i];
    t.reference = t.variants.find(v => v.id === t.reference);
    t.best = t.variants.find(v => v.id === t.best);
    const scores = t.variants.map(v => v.score).filter(Boolean);
    t.span = [Math.min(...scores.map(s => s[1])), Math.max(...scores.map(s => s[2]))];
    const axes = [...new Set(t.variants.flatMap(v => Object.keys(v.axes)))];
    const values = axis => [...new Set(t.variants.map(v => v.axes[axis] ?? null))].sort(inOrder);
    t.axes = axes.map(axis => [axis, values(axis)]).filter(([, found]) => found.length > 1);
    for (const v of t.variants) v.words = [v.name, v.id, ...Object.entries(v.axes).flat()].map(value).join(" ").toLowerCase();
  });

  function inOrder(a, b) {
    const none = (a == null) - (b == null);
    if (none || a == null) return none;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
  }

  function choose(name) {
    task = tasks.find(t => t.task === name) ?? tasks[0];
    for (const radio of form.querySelectorAll("[name=task]")) radio.checked = radio.value === task.task;
    state.sort = "score", state.down = true;
    task.columns ??= COLUMNS.filter(({filled, of}) => task.variants.some(v => filled ? filled(v) : of(v) != null));
    if (!task.columns.some(c => c.key === "score")) state.sort = "name", state.down = false;
    const cell = (v, c, i) => i ? el("td", {class: "n"}, ...c.cell(v)) : el("th", {scope: "row"}, ...c.cell(v));
    task.rows ??= new Map(task.variants.map(v => [v, el("tr", {}, ...task.columns.map((c, i) => cell(v, c, i)))]));
    $("#board thead").replaceChildren(el("tr", {}, ...task.columns.map((c, i) => {
      const button = el("button", {type: "button"}, c.title);
      button.addEventListener("click", () => {
        state.down = state.sort === c.key ? !state.down : Boolean(c.down);
        state.sort = c.key;
        update(false);
      });
      return el("th", {scope: "col", class: i && "n", "data-key": c.key}, button);
    })));
    $("#axes").replaceChildren(...task.axes.map(([axis, values]) => el("label", {}, axis,
      el("select", {"data-axis": axis}, el("option", {value: ""}, "all"), ...values.map((v, i) => el("option", {value: i}, value(v)))))));
    $("#legend").textContent = "Click a variant to compare it. ▲ ▼ better or worse than the reference, Holm-corrected p < 0.05"
      + (task.variants.some(v => v.pareto) ? "; ◆ on the Pareto front: no other variant is both better and cheaper." : ".");
    $("#terms").replaceChildren(...task.columns.filter(c => c.says).map(c => el("div", {}, el("dt", {}, c.title), el("dd", {}, c.says))));
    const units = [["orders", "orders per question"], ["tokens", "tokens sent per question"]]
      .filter(([key]) => task.variants.some(v => v[key] != null));
    $("#unit").replaceChildren(...units.map(([key, title]) => el("option", {value: key}, title)));
    const mean = i => task.variants[i].score?.[0], title = i => `${mean(i) == null ? "" : fixed(mean(i))} ${task.variants[i].name}`;
    const options = () => [...task.variants.keys()].sort((i, j) => (mean(j) ?? -1) - (mean(i) ?? -1)).map(i => el("option", {value: i}, title(i)));
    pair.a.replaceChildren(...options());
    pair.b.replaceChildren(...options());
    update();
  }

  function update(filtered = true) {
    const wanted = form.q.value.toLowerCase().split(/\s+/), {of} = task.columns.find(c => c.key === state.sort), turn = state.down ? -1 : 1;
    const set = [...form.querySelectorAll("[data-axis]")].filter(select => select.value !== "")
      .map(select => [select.dataset.axis, task.axes.find(([axis]) => axis === select.dataset.axis)[1][select.value]]);
    const fits = v => wanted.every(word => v.words.includes(word)) && set.every(([axis, x]) => (v.axes[axis] ?? null) === x);
    task.shown = task.variants.filter(fits).sort((v, w) => {
      const a = of(v), b = of(w);
      return a == null || b == null ? (a == null) - (b == null) : turn * inOrder(a, b);
    });
    if (filtered) plot(); // first: it reads its width, which is costly once the rows have moved
    $("#board tbody").replaceChildren(...task.shown.map(v => task.rows.get(v)));
    for (const th of document.querySelectorAll("#board thead th")) {
      if (th.dataset.key === state.sort) th.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
    form.querySelector("output").textContent = `${task.shown.length} of ${task.variants.length} variants`;
    heat();
  }

  // ---- score against cost ----
  function ticks(low, high, n) {
    const raw = (high - low) / n, unit = 10 ** Math.floor(Math.log10(raw)), step = unit * [1, 2, 5, 10].find(s => s * unit >= raw);
    return Array.from({length: Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9) + 1}, (_, i) => (Math.ceil(low / step - 1e-9) + i) * step);
  }
  function plot() {
    const box = $("#plot"), unit = $("#unit").value, rows = task.shown.filter(v => v.score && v[unit] != null);
    const width = Math.max(box.clientWidth, 280), height = Math.min(440, Math.max(280, 0.45 * width));
    const [left, right, top, bottom] = [46, width - 16, 16, height - 44];
    const hint = "Point at a dot to read its numbers.";
    $("#readout").textContent = hint;
    if (!rows.length) return box.replaceChildren(el("p", {class: "muted"}, "No variant with a score and a cost is left."));
    const front = [];
    for (const v of [...rows].sort((v, w) => v[unit] - w[unit] || w.score[0] - v.score[0])) {
      if (!front.length || v.score[0] > front.at(-1).score[0]) front.push(v);
    }
    const costs = rows.map(v => v[unit]), cheap = Math.min(...costs), dear = Math.max(...costs), log = cheap > 0 && dear > 8 * cheap;
    const heights = [...rows.map(v => v.score[0]), ...front.flatMap(v => v.score.slice(1, 3))];
    let low = Math.min(...heights), high = Math.max(...heights);
    if (task.chance != null && task.chance < low && low - task.chance < high - low) low = task.chance;
    const pad = 0.04 * (high - low) || 0.05, scale = log ? Math.log : x => x, gap = 0.05 * (scale(dear) - scale(cheap)) || 1;
    low -= pad, high += pad;
    const x = cost => left + (right - left) * (scale(cost) - scale(cheap) + gap) / (scale(dear) - scale(cheap) + 2 * gap);
    const y = score => bottom - (bottom - top) * (score - low) / (high - low);
    const own = [...new Set(costs)].sort((c, d) => c - d), apart = own.filter((c, i) => !i || x(c) - x(own[i - 1]) > 44);
    const powers = [1, 2, 5].flatMap(d => Array.from({length: 14}, (_, e) => d * 10 ** (e - 4))).sort((a, b) => a - b);
    const across = own.length < 9 ? apart : log ? powers.filter(c => c >= 0.9 * cheap && c <= 1.1 * dear) : ticks(cheap, dear, width / 110);
    const parts = [
      ...ticks(low, high, 6).map(s => svg("g", {}, svg("line", {class: "grid", x1: left, x2: right, y1: y(s), y2: y(s)}),
        svg("text", {x: left - 8, y: y(s) + 4, "text-anchor": "end"}, fixed(s, high - low < 0.06 ? 3 : 2)))),
      ...across.map(c => svg("text", {x: x(c), y: bottom + 18, "text-anchor": "middle"}, count(c))),
      svg("text", {x: (left + right) / 2, y: bottom + 36, "text-anchor": "middle"}, $("#unit").selectedOptions[0].text + (log ? " (log scale)" : "")),
    ];
    if (task.chance != null && task.chance >= low && task.chance <= high) {
      const at = y(task.chance);
      parts.push(svg("line", {class: "chance", x1: left, x2: right, y1: at, y2: at}), svg("text", {x: right, y: at - 5, "text-anchor": "end"}, "guessing"));
    }
    const path = front.map((v, i) => i ? `H${x(v[unit])}V${y(v.score[0])}` : `M${x(v[unit])} ${y(v.score[0])}`).join("") + `H${right}`;
    parts.push(svg("path", {class: "front-line", d: path}), ...front.map(v => whisker(v, "whisker")));
    const units = n => unit === "tokens" ? "tokens sent" : n === 1 ? "order" : "orders";
    const said = v => `${v.name}: ${fixed(v.score[0])} (${range(v.score)}), ${count(v[unit])} ${units(v[unit])} per question`;
    for (const v of [...rows.filter(v => !front.includes(v)), ...front]) {
      const on = front.includes(v), kind = `dot${on ? " front" : ""}${v === task.reference ? " reference" : ""}`;
      const point = svg("circle", {class: kind, cx: x(v[unit]), cy: y(v.score[0]), r: on ? 5.5 : 4}, svg("title", {}, said(v)));
      parts.push(point);
      if (!on) continue;
      fill(point, {tabindex: 0, role: "button", "aria-label": said(v)}, []);
      point.addEventListener("focus", () => mark(v));
      point.addEventListener("keydown", event => {
        if (event.key === "Enter" || event.key === " ") event.preventDefault(), compare(v);
      });
    }
    for (const [v, word, down] of [[task.best, "highest", false], [task.reference, "reference", true]]) {
      if (!rows.includes(v) || (down && v === task.best)) continue;
      const at = {x: Math.max(left + 32, Math.min(x(v[unit]), right - 30)), y: y(v.score[0]) + (down ? 20 : -11)};
      parts.push(svg("text", {class: "said", ...at, "text-anchor": "middle"}, word));
    }
    const hover = svg("g", {"pointer-events": "none"});
    const label = {role: "group", "aria-label": "score against cost; the table has the numbers"};
    const drawing = svg("svg", {viewBox: `0 0 ${width} ${height}`, ...label}, ...parts, hover);
    box.replaceChildren(drawing);

    function whisker(v, name) {
      return svg("line", {class: name, x1: x(v[unit]), x2: x(v[unit]), y1: y(v.score[1]), y2: y(v.score[2])});
    }
    function mark(v) {
      hover.replaceChildren(...v ? [whisker(v, "found-range"), svg("circle", {class: "found", cx: x(v[unit]), cy: y(v.score[0]), r: 8})] : []);
      $("#readout").textContent = v ? said(v) : hint;
    }
    function nearest(event) {
      const at = drawing.getBoundingClientRect();
      const away = v => Math.hypot(x(v[unit]) - event.clientX + at.left, y(v.score[0]) - event.clientY + at.top);
      const closest = rows.reduce((v, w) => away(w) < away(v) ? w : v);
      return away(closest) < 28 ? closest : null;
    }
    drawing.addEventListener("pointermove", event => mark(nearest(event)));
    drawing.addEventListener("click", event => { const v = nearest(event); if (v) compare(v); });
  }

  // ---- scores by group, or by task where there are no groups ----
  function heat() {
    const others = tasks.filter(t => t === task || t.variants.some(v => task.variants.some(w => v.name === w.name)));
    const cells = v => task.groups.length ? [v.score, ...v.groups] : others.map(t => t.variants.find(w => w.name === v.name)?.score);
    const heads = task.groups.length ? ["all questions", ...task.groups] : others.map(t => t.task);
    $("#groups").hidden = $("nav [href='#groups']").hidden = heads.length < 2;
    if (heads.length < 2) return;
    $("#groups h2").textContent = $("nav [href='#groups']").textContent = task.groups.length ? "By group" : "By task";
    const apart = $("#colour").value === "difference", base = apart ? cells(task.reference) : [];
    const rows = task.shown.slice(0, TOP).map(v => [v, cells(v)]);
    const worth = (s, i) => apart ? (base[i] ? s[0] - base[i][0] : null) : s[0];
    const all = rows.flatMap(([, of]) => of.map((s, i) => s && s[3] >= FEW ? worth(s, i) : null)).filter(x => x != null);
    const low = apart ? -Math.max(0.01, ...all.map(Math.abs)) : Math.min(...all), high = apart ? -low : Math.max(...all);
    const tint = x => {
      const t = Math.max(-1, Math.min(1, apart ? x / high : (x - low) / (high - low || 1)));
      return `color-mix(in oklab, var(${t < 0 ? "--warm" : "--accent"}) ${Math.round(45 * Math.abs(t))}%, var(--paper))`;
    };
    const cell = (s, i) => s ? el("td", {class: s[3] < FEW && "few", style: worth(s, i) == null ? null : `background: ${tint(worth(s, i))}`,
      title: `${heads[i]}: ${fixed(s[0])}, 95% interval ${range(s)}, ${s[3]} questions`}, fixed(s[0], 2)) : el("td");
    $("#heat table").replaceChildren(
      el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "variant"), ...heads.map(head => el("th", {scope: "col", title: head}, el("span", {}, head))))),
      el("tbody", {}, ...rows.map(([v, of]) => el("tr", {}, el("th", {scope: "row"}, v.name), ...of.map(cell)))));
    const stops = [...Array(9).keys()].map(i => tint(low + (high - low) * i / 8)).join(", ");
    const shade = el("i", {style: `background: linear-gradient(90deg, ${stops})`}), end = apart ? signed : x => fixed(x, 2);
    $("#scale").replaceChildren(...all.length ? [end(low), shade, end(high)] : []);
    const part = rows.length < task.shown.length ? `first ${rows.length} of ${task.shown.length} variants` : "variants";
    $("#heat-note").textContent = `Scores of the ${part} of the table, in its order.`
      + (task.groups.length ? ` Italic: fewer than ${FEW} questions, too few to read anything from it.` : "");
  }

  // ---- two variants question by question ----
  async function inflate(text) {
    const coded = atob(text), bytes = new Uint8Array(coded.length);
    for (let i = 0; i < coded.length; i++) bytes[i] = coded.charCodeAt(i);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  }
  async function unpack(t) {
    const [texts, picked, grades] = await Promise.all(t.pack.textContent.trim().split(" ").map(inflate));
    const kept = t.pack.dataset.wide === "1" ? new Uint16Array(picked) : new Uint8Array(picked);
    return {...JSON.parse(new TextDecoder().decode(texts)), picked: kept, steps: grades && new Uint8Array(grades)};
  }
  // Grade of variant v on question q in [0, 1], null without gold.
  function grader({questions, picked, steps: given}, t) {
    const n = t.variants.length;
    if (given) return (q, v) => given[q * n + v] === 255 ? null : given[q * n + v] / steps;
    return (q, v) => questions[q].gold === null ? null : +(picked[q * n + v] === questions[q].gold);
  }
  // Exact McNemar (sign) test: two-sided binomial p of the smaller of two discordant counts, both equally probable.
  function mcnemar(b, c) {
    const n = b + c, k = Math.min(b, c);
    let log = -n * Math.LN2, sum = 0;
    for (let i = 0; i <= k; i++) sum += Math.exp(log), log += Math.log((n - i) / (i + 1));
    return Math.min(1, 2 * sum);
  }

  const SHOWS = [["differ", "answers differ"], ["a", "A better"], ["b", "B better"], ["all", "all"]];
  function compare(v) {
    pair.a.value = task.variants.indexOf(v);
    if (pair.b.value === pair.a.value) pair.b.value = task.variants.indexOf(task.reference === v ? task.best : task.reference);
    state.page = 0;
    keep();
    draw().then(() => $("#compare").scrollIntoView());
  }
  async function draw() {
    const t = task, a = +pair.a.value, b = +pair.b.value, va = t.variants[a], vb = t.variants[b];
    const data = await (t.data ??= unpack(t)), grade = grader(data, t), n = t.variants.length;
    if (t !== task || a !== +pair.a.value || b !== +pair.b.value) return; // another pair was chosen meanwhile
    const rows = data.questions.map((_, q) => ({q, a: grade(q, a), b: grade(q, b), differ: data.picked[q * n + a] !== data.picked[q * n + b]}));
    const graded = rows.filter(row => row.a !== null && row.b !== null), counted = test => graded.filter(test).length;
    const binary = graded.every(row => row.a % 1 === 0 && row.b % 1 === 0);
    const better = counted(row => row.a > row.b), worse = counted(row => row.b > row.a), same = graded.length - better - worse;
    const whole = x => x.toLocaleString("en");
    const td = (name, n, text, apart) => el("td", {id: name, class: apart && "apart"}, el("data", {value: n}, whole(n)), el("small", {}, text));
    const both = counted(row => row.a === 1 && row.b === 1);
    $(".counts").replaceChildren(el("tbody", {}, ...binary
      ? [el("tr", {}, td("both", both, "both right"), td("only-a", better, "only A right", true)),
        el("tr", {}, td("only-b", worse, "only B right", true), td("neither", same - both, "both wrong"))]
      : [el("tr", {}, td("only-a", better, "A better", true), td("only-b", worse, "B better", true), td("both", same, "the same grade"))]));
    const p = mcnemar(better, worse), mean = key => graded.reduce((sum, row) => sum + row[key], 0) / graded.length;
    $("#verdict").replaceChildren(...graded.length ? [
      `Exact ${binary ? "McNemar" : "sign"} test, two-sided: p = `, el("data", {id: "p", value: p}, chance(p)),
      ` over the ${whole(better + worse)} questions where one is ${binary ? "right and the other wrong" : "better"}. `,
      `A minus B: ${signed(mean("a") - mean("b"))} over ${whole(graded.length)} questions. `,
      el("span", {class: "muted"}, "p is not corrected for the number of pairs that you look at; the table's Holm p is.",
        binary ? "" : ` Grades are kept in steps of ${1 / steps} on this page: smaller differences count as the same.`),
    ] : ["No question has a gold answer."]);
    facts(va, vb);
    const kinds = {
      differ: rows.filter(row => row.differ), a: graded.filter(row => row.a > row.b), b: graded.filter(row => row.b > row.a), all: rows,
    };
    const titled = (key, title) => `${binary ? title.replace(/(.) better/, "only $1 right") : title} (${whole(kinds[key].length)})`;
    $("#show fieldset").replaceChildren(el("legend", {}, "questions"), ...SHOWS.map(([key, title]) => el("label", {},
      el("input", {class: "sr", type: "radio", name: "show", value: key, checked: key === state.show}), el("span", {}, titled(key, title)))));
    list(kinds[state.show], data, t, a, b);
  }
  function facts(a, b) {
    const measured = task.columns.filter(c => !["name", "score", "difference", "p"].includes(c.key));
    const cells = [
      ...task.axes.map(([axis]) => [axis, v => value(v.axes[axis]), true]),
      ["score", v => v.score ? `${fixed(v.score[0])} (${range(v.score)})` : "none"],
      ...measured.map(c => [c.title, v => c.cell(v)[0]?.textContent ?? c.cell(v)[0] ?? "none"]),
      ...a.adaptive || b.adaptive ? [["adaptive", v => v.adaptive ? adaptive(v.adaptive) : "no"]] : [],
    ];
    $(".facts").replaceChildren(el("thead", {}, el("tr", {}, ...["", "A", "B"].map(head => el("th", {scope: "col"}, head)))),
      el("tbody", {}, ...cells.map(([title, of, axis]) => el("tr", {class: axis && of(a) !== of(b) && "differs"},
        el("th", {scope: "row"}, title), el("td", {}, of(a)), el("td", {}, of(b))))));
  }
  function adaptive(d) {
    const percent = x => `${+(100 * x).toPrecision(2)}%`;
    const bound = d.guarantee ? `other answer than full in at most ${percent(d.max_disagreement)}, at ${percent(d.confidence)} confidence` : "no guarantee";
    return [
      bound,
      d.expected_disagreement == null ? null : `expected ${percent(d.expected_disagreement)}`,
      d.upper_bound == null ? null : `bound ${percent(d.upper_bound)}`,
      d.orders_share_of_full == null ? null : `${percent(d.orders_share_of_full)} of the orders of full`,
      `${d.calibration_questions} questions for calibration`,
    ].filter(Boolean).join("; ");
  }
  function list(rows, data, t, a, b) {
    const last = Math.max(0, Math.ceil(rows.length / PAGE) - 1), from = PAGE * (state.page = Math.min(state.page, last)), n = t.variants.length;
    const [first, end, total] = [from + 1, Math.min(from + PAGE, rows.length), rows.length].map(x => x.toLocaleString("en"));
    for (const pages of document.querySelectorAll(".pages")) {
      const step = (title, by) => {
        const button = el("button", {type: "button", disabled: state.page + by < 0 || state.page + by > last}, title);
        button.addEventListener("click", () => { state.page += by; draw(); $("#show").scrollIntoView(); });
        return button;
      };
      pages.replaceChildren(step("Previous", -1), rows.length ? `${first} to ${end} of ${total}` : "none", step("Next", 1));
    }
    $("#list").replaceChildren(...rows.slice(from, from + PAGE).map(row => {
      const question = data.questions[row.q], [pa, pb] = [data.picked[row.q * n + a], data.picked[row.q * n + b]];
      const tag = (text, kind) => [" ", el("span", {class: `badge ${kind}`}, text)];
      const judged = (name, g) => tag(`${name} ${g === 1 ? "right" : g === 0 ? "wrong" : fixed(g, 2)}`, g === 1 ? "good" : g === 0 ? "off" : "");
      const head = el("div", {}, el("strong", {}, question.id), el("span", {class: "muted"}, question.group == null ? "" : ` ${question.group}`),
        ...row.a === null ? [] : [...judged("A", row.a), ...judged("B", row.b)]);
      const article = el("article", {}, head, el("p", {}, question.text));
      if (t.choice) {
        const right = i => i === question.gold ? "good" : "off";
        article.append(el("ol", {}, ...question.choices.map((text, i) => el("li", {class: i === question.gold && "gold"}, text,
          ...i === question.gold ? tag("gold", "good") : [], ...i === pa ? tag("A", right(i)) : [], ...i === pb ? tag("B", right(i)) : []))));
        const silent = [["A", pa], ["B", pb]].filter(([, pick]) => pick === 255).map(([name]) => name);
        if (silent.length) article.append(el("p", {class: "muted"}, `No answer of ${silent.join(" and ")}.`));
      } else {
        const side = (title, text) => el("div", {}, el("small", {}, title), text || el("i", {}, "no text"));
        const said = t.texts ? [side("A", data.answers[row.q][pa]), side("B", data.answers[row.q][pb])] : [];
        article.append(el("div", {class: "texts"}, ...said, ...(question.gold ?? []).map(text => side("gold", text))));
      }
      return article;
    }));
  }

  // ---- the address: #task=math&a=ID&b=ID&show=differ is a comparison, other hashes are sections ----
  function keep() {
    const kept = {task: task.task, a: task.variants[pair.a.value].id, b: task.variants[pair.b.value].id, show: state.show};
    history.replaceState(null, "", "#" + new URLSearchParams(kept));
  }
  function follow() {
    if (task && location.hash && !location.hash.includes("=")) return;
    const wanted = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    if (!task || (wanted.has("task") && wanted.get("task") !== task.task)) choose(wanted.get("task"));
    const place = (id, v) => task.variants.indexOf(task.variants.find(w => w.id === id) ?? v);
    pair.a.value = place(wanted.get("a"), task.best);
    pair.b.value = place(wanted.get("b"), task.best === task.reference ? task.variants.find(v => v !== task.best) ?? task.best : task.reference);
    state.show = SHOWS.some(([key]) => key === wanted.get("show")) ? wanted.get("show") : "differ";
    state.page = 0;
    const drawn = draw();
    if (wanted.has("a") || wanted.has("b")) drawn.then(() => $("#compare").scrollIntoView());
  }

  form.addEventListener("input", event => {
    if (event.target.name !== "task") return update();
    choose(event.target.value);
    history.replaceState(null, "", "#" + new URLSearchParams({task: task.task}));
    follow();
  });
  $("#clear").addEventListener("click", () => {
    form.q.value = "";
    for (const select of form.querySelectorAll("[data-axis]")) select.value = "";
    update();
  });
  for (const each of document.forms) each.addEventListener("submit", event => event.preventDefault());
  $("#unit").addEventListener("input", plot);
  $("#colour").addEventListener("input", heat);
  pair.addEventListener("input", () => { state.page = 0; keep(); draw(); });
  $("#swap").addEventListener("click", () => { [pair.a.value, pair.b.value] = [pair.b.value, pair.a.value]; state.page = 0; keep(); draw(); });
  $("#show").addEventListener("input", event => { state.show = event.target.value; state.page = 0; keep(); draw(); });
  addEventListener("hashchange", follow);
  $("main").hidden = $("nav").hidden = false;
  follow();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) width = innerWidth, plot(); });
})();
