// The page's only script: it re-selects by a threshold, and lays pictures over each other. No library, nothing fetched.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const whole = n => Math.round(n).toLocaleString("en");
  const short = x => (x === 0 ? "0" : x.toLocaleString("en", { maximumSignificantDigits: 4 })).replace("-", "\u2212");
  const percent = share => {
    const p = 100 * share;
    return `${p > 0 && p < 10 ? p.toFixed(1) : p.toFixed(0)}\u00a0%`;
  };
  const make = (tag, set = {}, ...inside) => {
    const element = Object.assign(document.createElement(tag), set);
    element.append(...inside);
    return element;
  };

  // ---- choosing again ----

  /** Scores as embedded: n of them, and their values in ascending order (a sample of them where they are too many). */
  const unpack = part => {
    const bytes = Uint8Array.from(atob(part.values), c => c.charCodeAt(0));
    return { n: part.n, values: new Float64Array(bytes.buffer) };
  };

  /** How many of the scores lie strictly below a threshold. */
  const below = ({ n, values }, threshold) => {
    let low = 0;
    for (let high = values.length; low < high; ) {
      const middle = (low + high) >> 1;
      if (values[middle] < threshold) low = middle + 1;
      else high = middle;
    }
    return values.length === n ? low : Math.round((n * low) / values.length);
  };

  const threshold = (data, beta) => {
    if (data.low === data.high) return data.low;
    return data.rule === "literal" ? data.high * beta : data.low + (data.high - data.low) * beta;
  };

  /** Bars in the colours of what a threshold would keep, and its line; beyond the axis it stands at the end. */
  const paint = (plot, data, parts, cut) => {
    const { low, high, left, right, bottom } = Object.fromEntries(
      ["low", "high", "left", "right", "bottom"].map(name => [name, Number(plot.dataset[name])]));
    const kept = all("rect.kept", plot), dropped = all("rect.dropped", plot);
    kept.forEach((bar, i) => {
      bar.tall ??= Number(bar.getAttribute("height")) + Number(dropped[i].getAttribute("height"));
      const [start, end] = [data.edges[i], data.edges[i + 1]];
      let share = cut === null || cut <= start ? 1 : 0;
      if (cut !== null && start < cut && cut < end) {
        const [under, here, over] = [start, cut, end].map(t => parts.reduce((sum, p) => sum + below(p, t), 0));
        share = over > under ? (over - here) / (over - under) : 0;
      }
      const tall = bar.tall * share;
      bar.setAttribute("y", bottom - tall);
      bar.setAttribute("height", tall);
      dropped[i].setAttribute("y", bottom - bar.tall);
      dropped[i].setAttribute("height", bar.tall - tall);
    });
    const line = one(".cut", plot), name = one("text", line);
    const x = left + (right - left) * Math.min(1, Math.max(0, ((cut ?? low) - low) / (high - low)));
    const early = x < (left + right) / 2;
    line.setAttribute("visibility", cut === null ? "hidden" : "visible");
    line.setAttribute("transform", `translate(${x} 0)`);
    name.setAttribute("x", early ? 5 : -5);
    name.setAttribute("text-anchor", early ? "start" : "end");
  };

  /** The tiles that the page shows: which of them the choice would let in or out. */
  const mark = cut => {
    for (const tile of all("figure[data-score]")) {
      const kept = cut === null ? tile.dataset.kept === "1" : Number(tile.dataset.score) >= cut;
      if (kept === (tile.dataset.kept === "1")) delete tile.dataset.change;
      else tile.dataset.change = kept ? "would enter" : "would leave";
    }
  };

  const reselect = () => {
    const source = one("#scores-data"), panel = one("#reselect");
    if (!source || !panel) return;
    const data = JSON.parse(source.textContent), parts = [unpack(data.kept), unpack(data.dropped)];
    const input = one("input", panel), told = one("output", panel), command = one("[data-command]", panel);
    const plot = one("#scores .plot"), copy = one("[data-copy]", panel);

    const show = chosen => {
      const own = chosen === null;
      const beta = own ? data.start : chosen;
      const cut = own ? data.threshold : threshold(data, beta);
      const enter = cut === null ? 0 : parts[1].n - below(parts[1], cut);
      const leave = cut === null ? 0 : below(parts[0], cut);
      const kept = parts[0].n + enter - leave;
      const value = Number(beta.toFixed(4)).toString();
      const where = cut === null ? "Without a threshold" : data.beta ? `At beta ${value} (threshold ${short(cut)})` : `At threshold ${short(cut)}`;
      const about = data.exact ? "" : "about ";
      const change = own ? ", as in this run." : `, ${about}${whole(enter)} enter, ${whole(leave)} leave against this run.`;
      told.textContent = `${where}: ${about}${whole(kept)} of ${whole(data.total)} scored tiles kept (${percent(kept / data.total)})${change}`;
      command.textContent = data.command + value;
      one(".command", panel).hidden = own;
      input.setAttribute("aria-valuetext", where);
      paint(plot, data, parts, cut);
      mark(cut);
    };

    panel.hidden = false;
    input.addEventListener("input", () => show(input.valueAsNumber));
    one("[data-reset]", panel).addEventListener("click", () => {
      input.value = data.start;
      show(null);
    });
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command.textContent);
        copy.textContent = "Copied";
      } catch {  // a page from a file may not write there: the words are selected instead
        getSelection().selectAllChildren(command);
        copy.textContent = "Selected";
      }
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
    show(null);
  };

  // ---- two pictures over each other ----

  /** Small buttons, one of which is pressed: a radio group. */
  const buttons = (title, name, labels, chosen, change) => {
    const group = make("fieldset", { className: "choice" }, make("legend", { textContent: title }));
    labels.forEach(([value, text]) => {
      const radio = make("input", { type: "radio", name, value, checked: value === chosen });
      radio.addEventListener("change", () => change(value));
      group.append(make("label", {}, radio, make("span", { textContent: text })));
    });
    return group;
  };

  /** Fill a box with a stage: pictures of `figures` in pairs, the right one cut off by a slider, or faded by it. */
  const compare = (box, number) => {
    const layers = new Map(all("figure[data-layer]", box.parentElement)
      .filter(figure => one("img", figure) && !("apart" in figure.dataset))
      .map(figure => [figure.dataset.layer, figure]));
    if (layers.size < 2) return;
    const names = [...layers.keys()];
    const pick = (wanted, other) => wanted.split(" ").find(n => layers.has(n) && n !== other) ?? names.find(n => n !== other);
    const state = { left: pick(box.dataset.left, ""), mode: "swipe" };
    state.right = pick(box.dataset.right, state.left);
    const labels = names.map(n => [n, layers.get(n).dataset.short ?? one("figcaption b", layers.get(n)).textContent]);
    const said = new Map(labels);
    const sides = ["left", "right"].map(side => make("img", { className: side, alt: "" }));
    const tags = ["left", "right"].map(side => make("span", { className: `tag ${side}` }));
    const frame = make("div", { className: "frame" }, ...sides, ...tags);
    const range = make("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50 });
    const stage = make("div", { className: "stage" }, frame, range);
    const captions = make("div", { className: "captions" });

    const draw = () => {
      ["left", "right"].forEach((side, i) => {
        const picture = one("img", layers.get(state[side]));
        if (sides[i].layer !== state[side]) Object.assign(sides[i], { src: picture.src, alt: picture.alt, layer: state[side] });
        tags[i].textContent = said.get(state[side]);
      });
      const share = range.valueAsNumber, fade = state.mode === "fade";
      stage.classList.toggle("fade", fade);
      sides[1].style.clipPath = fade ? "none" : `inset(0 0 0 ${share}%)`;
      sides[1].style.opacity = fade ? share / 100 : 1;
      range.setAttribute("aria-label", fade ? `Opacity of ${said.get(state.right)} over ${said.get(state.left)}`
        : `Border between ${said.get(state.left)} and ${said.get(state.right)}`);
      tags[0].hidden = share < (fade ? 0 : 14);
      tags[1].hidden = share > (fade ? 100 : 86);
    };
    const explain = () => {
      const lines = [state.left, state.right].map(n => [said.get(n), one("figcaption [data-more]", layers.get(n))]);
      captions.replaceChildren(...lines.filter(([, more]) => more)
        .map(([name, more]) => make("div", {}, `${name}: `, more.cloneNode(true))));
    };
    const choose = side => value => {
      state[side] = value;
      draw();
      explain();
    };

    const first = one("img", layers.get(names[0]));
    const [wide, high] = ["width", "height"].map(name => Number(first.getAttribute(name)));
    frame.style.aspectRatio = `${wide} / ${high}`;
    box.style.setProperty("--ratio", wide / high);
    range.addEventListener("input", draw);
    const tools = make("div", { className: "tools" },
      buttons("Left", `left-${number}`, labels, state.left, choose("left")),
      buttons("Right", `right-${number}`, labels, state.right, choose("right")));
    if ("fade" in box.dataset) {
      tools.append(buttons("Slider", `mode-${number}`, [["swipe", "swipes"], ["fade", "fades"]], "swipe", choose("mode")));
    }
    box.append(stage, tools, captions);
    box.hidden = false;
    if (box.dataset.instead) for (const e of all(box.dataset.instead, box.parentElement)) e.hidden = true;
    draw();
    explain();
  };

  reselect();
  all(".compare").forEach(compare);
})();
