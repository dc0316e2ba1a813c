"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const main = document.querySelector("main");
  const times = main.dataset.times.split("|");
  const marks = JSON.parse(main.dataset.marks);
  const plots = [...document.querySelectorAll("svg.plot")];
  let readings = null; // [element, its words at each moment, its newest word]
  let cursors = null;
  let chip = null;
  let wanted = null;

  const expanded = (packed) =>
    packed.split("|").flatMap((token) => {
      const [word, count] = token.split("*");
      return Array(count ? Number(count) : 1).fill(word);
    });

  const prepare = () => {
    readings = [...document.querySelectorAll("[data-v]")].map((element) => [
      element, expanded(element.dataset.v), element.textContent,
    ]);
    cursors = plots.map((plot) => {
      const line = document.createElementNS(SVG, "line");
      line.setAttribute("class", "cursor");
      line.setAttribute("y1", "16");
      line.setAttribute("y2", String(plot.height.baseVal.value - 22));
      plot.append(line);
      return line;
    });
    chip = document.createElement("div");
    chip.className = "chip";
  };

  const say = (element, word) => {
    element.textContent = word;
    element.classList.toggle("nothing", word === "-");
  };

  const show = ([plot, moment]) => {
    if (!readings) prepare();
    const place = moment / (times.length - 1);
    for (const line of cursors) {
      line.setAttribute("x1", `${100 * place}%`);
      line.setAttribute("x2", `${100 * place}%`);
      line.style.display = "";
    }
    for (const [element, words] of readings) say(element, words[moment]);
    const near = marks.filter(([at]) => Math.abs(at - moment) <= times.length / 150);
    const words = [...new Set(near.map(([, words]) => words))];
    chip.textContent = [times[moment], ...words.slice(0, 3), ...(words.length > 3 ? ["…"] : [])].join(" · ");
    const figure = plot.closest("figure");
    if (chip.parentNode !== figure) figure.append(chip);
    const box = plot.getBoundingClientRect(), outer = figure.getBoundingClientRect();
    const half = chip.offsetWidth / 2, at = box.left - outer.left + place * box.width;
    chip.style.left = `${Math.min(Math.max(at, half), Math.max(outer.width - half, half))}px`;
  };

  const clear = () => {
    wanted = null;
    if (!readings) return;
    for (const line of cursors) line.style.display = "none";
    for (const [element, , newest] of readings) say(element, newest);
    chip.remove();
  };

  const follow = (event) => {
    const plot = event.currentTarget, box = plot.getBoundingClientRect();
    const place = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    const isWaiting = wanted !== null;
    wanted = [plot, Math.round(place * (times.length - 1))];
    if (!isWaiting) {
      requestAnimationFrame(() => {
        if (wanted) show(wanted);
        wanted = null;
      });
    }
  };

  for (const plot of plots) {
    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", follow);
    plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && clear());
  }
  document.addEventListener("pointerdown", (event) => event.target.closest(".plot") || clear());

  // A browser itself scrolls back to where it was; what was opened is opened again here.
  const every = Number(main.dataset.every);
  if (every > 0) {
    const key = `crossreid ${location.pathname}`;
    const details = [...document.querySelectorAll("details")];
    try {
      for (const number of JSON.parse(sessionStorage.getItem(key) || "[]")) {
        if (details[number]) details[number].open = true;
      }
    } catch { /* Some browsers keep nothing for files. */ }
    const reload = () => {
      if (document.hidden || (chip && chip.isConnected)) return void setTimeout(reload, 1000);
      const open = details.flatMap((one, number) => (one.open ? [number] : []));
      try {
        sessionStorage.setItem(key, JSON.stringify(open));
      } catch { /* As above. */ }
      location.reload();
    };
    setTimeout(reload, every * 1000);
  }
})();
