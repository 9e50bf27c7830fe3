// The one script of an explorer's page: it unpacks frames, draws the chart for the width and theme of the page, keeps
// controls, words and address in step, and opens the setting that a link asks for. Vega draws everything else.
(() => {
  "use strict";

  const find = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // --- frames -------------------------------------------------------------------------------------------------------

  async function unpacked(id) {
    const text = atob(find(id).textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  // A bitmap is what can be written without compressing: a header, and rows from the bottom as blue, green, red.
  // Several pictures stand side by side.
  function bitmap(levels, count, [channels, height, width]) {
    const row = 4 * Math.ceil((3 * width * count) / 4);
    const bytes = new Uint8Array(54 + row * height);
    const view = new DataView(bytes.buffer);
    const header = [[2, bytes.length], [10, 54], [14, 40], [18, width * count], [22, height], [34, row * height]];
    bytes.set([66, 77]);
    for (const [place, value] of header) view.setUint32(place, value, true);
    view.setUint16(26, 1, true);
    view.setUint16(28, 24, true);
    for (let s = 0; s < count; s += 1) {
      for (let c = 0; c < 3; c += 1) {
        const channel = s * channels + (channels === 1 ? 0 : 2 - c);
        for (let y = 0; y < height; y += 1) {
          const to = 54 + (height - 1 - y) * row + 3 * s * width + c;
          for (let x = 0; x < width; x += 1) bytes[to + 3 * x] = levels[(channel * height + y) * width + x];
        }
      }
    }
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return "data:image/bmp;base64," + btoa(text);
  }

  // The clean pictures first; then, for each strip of changes, the attacked pictures and the changes alone, magnified.
  function pictures(header, buffer) {
    if (!header.shape) return [];
    const size = header.shape.reduce((product, side) => product * side, 1);
    const clean = new Uint8Array(buffer, 0, header.clean * size);
    const signed = header.width === 1 ? Int8Array : Int16Array;
    const changes = new signed(buffer.slice(header.clean * size));
    const urls = [];
    for (let i = 0; i < header.clean; i += 1) urls.push(bitmap(clean.subarray(i * size), 1, header.shape));
    const length = header.strengths * size;
    header.source.forEach((source, i) => {
      const attacked = new Uint8Array(length);
      const magnified = new Uint8Array(length);
      for (let s = 0; s < header.strengths; s += 1) {
        const change = changes.subarray(i * length + s * size, i * length + (s + 1) * size);
        let largest = 1;
        for (let j = 0; j < size; j += 1) largest = Math.max(largest, Math.abs(change[j]));
        for (let j = 0; j < size; j += 1) {
          attacked[s * size + j] = clean[source * size + j] + change[j];
          magnified[s * size + j] = 128 + Math.floor((127 * change[j]) / largest + 0.5);
        }
      }
      urls.push(bitmap(attacked, header.strengths, header.shape), bitmap(magnified, header.strengths, header.shape));
    });
    return urls.map((url, z) => ({ z, url }));
  }

  // --- state, words and address -------------------------------------------------------------------------------------

  const page = { view: null, content: null, tables: null, width: null, state: {}, busy: false };

  function place(control, value) {
    return control.values.findIndex((known) => known === value ||
      (typeof known === "number" && typeof value === "number" && Math.abs(known - value) < 1e-9));
  }

  // What a link asks for; values that were not measured are named, not shown.
  function asked(text) {
    const given = new URLSearchParams(text.replace(/^#/, ""));
    const state = {};
    const wrong = [];
    for (const control of page.content.controls) {
      const value = given.get(control.name);
      if (value === null) continue;
      const number = typeof control.values[0] === "number";
      const found = place(control, number && value.trim() !== "" ? Number(value) : value);
      if (found < 0) wrong.push(`${control.name}=${value}`);
      else state[control.name] = control.values[found];
    }
    find("problem").textContent = wrong.length
      ? `The link asks for ${wrong.join(", ")}, which was not measured; the page shows another setting.` : "";
    return state;
  }

  function link() {
    return "#" + new URLSearchParams(page.content.controls.map((control) => [control.name, page.state[control.name]]));
  }

  function said() {
    for (const control of page.content.controls) {
      const words = control.words[place(control, page.state[control.name])];
      const input = control.input;
      input.setAttribute("aria-label", control.label);
      if (input.type === "range") {
        input.setAttribute("aria-valuetext", words);
        input.parentElement.querySelector("output").textContent = words;
      }
    }
    find("said").textContent = page.content.captions[page.view.signal("frame")];
    history.replaceState(null, "", link());
  }

  async function show(state) {
    for (const control of page.content.controls) {
      if (control.name in state) page.view.signal(control.name, state[control.name]);
    }
    await page.view.runAsync();
  }

  function follow() {
    for (const control of page.content.controls) {
      const found = place(control, page.view.signal(control.name));
      if (found >= 0) page.state[control.name] = control.values[found];
    }
    if (page.following) return;
    page.following = requestAnimationFrame(() => {
      page.following = null;
      said();
    });
  }

  // --- the chart ----------------------------------------------------------------------------------------------------

  // Vega makes the inputs, in an order of its own and with bare numbers beside them.
  function controls() {
    for (const control of page.content.controls) {
      control.input = [...document.querySelectorAll("#controls input, #controls select")]
        .find((input) => input.name === control.name);
      find("controls").append(control.input.closest(".vega-bind"));
      if (control.input.type !== "range") continue;
      while (control.input.nextSibling) control.input.nextSibling.remove();
      control.input.after(document.createElement("output"));
    }
  }

  function layout() {
    const widths = Object.keys(page.content.layouts).map(Number).sort((a, b) => b - a);
    const room = find("chart").clientWidth + 2;
    return widths.find((width) => width <= room) || widths[widths.length - 1];
  }

  async function draw() {
    page.width = layout();
    const focus = document.activeElement && document.activeElement.name;
    const spec = structuredClone(page.content.layouts[page.width]);
    spec.datasets = page.tables;
    const look = page.content.themes[dark.matches ? "dark" : "light"];
    if (page.view) page.view.finalize();
    find("controls").replaceChildren();
    const options = { actions: false, renderer: "canvas", config: look, bind: "#controls" };
    const { view } = await vegaEmbed("#chart", spec, options);
    page.view = view;
    window.view = view;
    controls();
    await show(page.state);
    for (const control of page.content.controls) view.addSignalListener(control.name, follow);
    view.addEventListener("click", (event, item) => {
      const picked = page.content.controls.find(({ field }) => field && item && item.datum && field in item.datum);
      if (picked) show({ [picked.name]: item.datum[picked.field] });
    });
    follow();
    if (focus && document.getElementsByName(focus)[0]) document.getElementsByName(focus)[0].focus();
  }

  async function redraw() {
    if (page.busy) return;
    page.busy = true;
    await draw();
    page.busy = false;
  }

  // --- buttons ------------------------------------------------------------------------------------------------------

  function buttons() {
    for (const [name, preset] of Object.entries(page.content.presets)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => show(preset));
      find("copy").before(button);
    }
    find("copy").addEventListener("click", async () => {
      const address = location.href.split("#")[0] + link();
      try {
        await navigator.clipboard.writeText(address);
        find("copied").textContent = "copied";
      } catch {
        find("link").hidden = false;
        find("link").value = address;
        find("link").select();
        find("copied").textContent = "copy it from the field";
      }
    });
  }

  async function start() {
    page.content = JSON.parse(new TextDecoder().decode(await unpacked("explorer-content")));
    const table = pictures(page.content.pictures, await unpacked("explorer-levels"));
    page.tables = table.length ? { ...page.content.tables, pictures: table } : page.content.tables;
    for (const control of page.content.controls) page.state[control.name] = control.value;
    Object.assign(page.state, asked(location.hash));
    buttons();
    await draw();
    dark.addEventListener("change", redraw);
    addEventListener("resize", () => layout() !== page.width && redraw());
    addEventListener("hashchange", () => show(asked(location.hash)));
    document.body.dataset.ready = "yes";
  }

  start().catch((error) => {
    find("problem").textContent = `The page cannot be shown: ${error.message}. A newer browser may help.`;
    throw error;
  });
})();
