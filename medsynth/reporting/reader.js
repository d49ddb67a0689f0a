"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const study = JSON.parse(find("study").textContent);
  const total = study.pictures.length;
  const named = study.classes.length > 1;
  const memory = `medsynth-reader-study-${study.study}`;
  const pseudonym = /^[\p{L}\p{N}][\p{L}\p{N}_.-]{0,19}$/u;
  const largest = 12; // screen pixels per scan pixel; more would only blur the picture
  const views = ["start", "desk", "finish"];

  // place: -1 is the introduction, 0 to total - 1 the cases, total the export.
  const empty = () => ({
    reader: "",
    place: -1,
    cases: study.pictures.map(() => ({ answer: "", label: -1, confidence: 0, seconds: 0 })),
  });
  let state = recall() || empty();
  let shownSince = null;

  function recall() {
    // Stored data may have any form: only what this page could have written is used.
    try {
      const kept = JSON.parse(localStorage.getItem(memory));
      const fresh = empty();
      if (!kept || !Array.isArray(kept.cases) || kept.cases.length !== total) return null;
      if (pseudonym.test(kept.reader)) fresh.reader = kept.reader;
      if (fresh.reader && Number.isInteger(kept.place) && kept.place >= -1 && kept.place <= total) fresh.place = kept.place;
      fresh.cases.forEach((one, number) => {
        const before = kept.cases[number] || {};
        if (before.answer === "real" || before.answer === "synthetic") one.answer = before.answer;
        if (Number.isInteger(before.label) && before.label >= 0 && before.label < study.classes.length) one.label = before.label;
        if (Number.isInteger(before.confidence) && before.confidence >= 0 && before.confidence <= 5) one.confidence = before.confidence;
        if (before.seconds >= 0 && before.seconds < 1e6) one.seconds = before.seconds;
      });
      return fresh;
    } catch {
      return null;
    }
  }

  function keep() {
    try {
      localStorage.setItem(memory, JSON.stringify(state));
    } catch {
      find("unkept").hidden = false;
    }
  }

  function say(text) {
    find("status").textContent = text;
  }

  // Only the time that a case is on a visible screen counts.
  function stopClock() {
    if (shownSince !== null && state.cases[state.place]) {
      state.cases[state.place].seconds += (performance.now() - shownSince) / 1000;
    }
    shownSince = null;
  }

  function startClock() {
    shownSince = state.cases[state.place] && !document.hidden ? performance.now() : null;
  }

  function done(one) {
    return one.answer !== "" && (!named || one.label >= 0);
  }

  function press(name, chosen) {
    for (const button of document.querySelectorAll(`[data-${name}]`)) {
      button.setAttribute("aria-pressed", String(button.dataset[name] === String(chosen)));
    }
  }

  function showAnswers() {
    const one = state.cases[state.place];
    press("answer", one.answer);
    press("class", one.label);
    press("confidence", one.confidence);
    find("progress").value = state.cases.filter(done).length;
  }

  function showCase() {
    const number = state.place + 1;
    const picture = find("scan");
    picture.src = `data:image/png;base64,${study.pictures[state.place]}`;
    picture.alt = study.planes
      ? `Scan of case ${number}: its central axial, coronal and sagittal planes, from left to right`
      : `Scan of case ${number}`;
    picture.decode().then(() => {
      picture.style.maxWidth = `${picture.naturalWidth * largest}px`;
    }, () => {});
    find("case-title").textContent = `Case ${number} of ${total}`;
    find("next-text").textContent = number === total ? "Finish" : "Next";
    showAnswers();
    const one = state.cases[state.place];
    say(`Case ${number} of ${total}, ${done(one) ? "answered" : "open"}`);
  }

  function showFinish() {
    const open = state.cases.map((one, number) => (done(one) ? -1 : number)).filter((number) => number >= 0);
    find("count").textContent = `${total - open.length} of ${total} cases answered.`;
    find("open-cases").hidden = open.length === 0;
    find("open-list").replaceChildren(
      ...open.map((number) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = String(number + 1);
        button.setAttribute("aria-label", `Case ${number + 1}`);
        button.addEventListener("click", () => go(number));
        return button;
      }),
    );
    find("exported").textContent = "";
    find("clear").textContent = "Clear my answers";
    delete find("clear").dataset.sure;
    say(find("count").textContent);
  }

  function go(place) {
    stopClock();
    const before = shownView();
    state.place = Math.max(-1, Math.min(total, place));
    keep();
    show();
    // Within the cases the focus stays on the button that was pressed.
    if (shownView() !== before) {
      document.querySelector(`#${shownView()} h1`).focus({ preventScroll: true });
      window.scrollTo(0, 0);
    } else if (before === "desk") {
      find("stage").scrollIntoView({ block: "nearest" });
    }
  }

  function shownView() {
    return views[state.place < 0 ? 0 : state.place < total ? 1 : 2];
  }

  function show() {
    for (const view of views) find(view).hidden = view !== shownView();
    if (shownView() === "desk") showCase();
    if (shownView() === "finish") showFinish();
    if (shownView() === "start") find("reader").value = state.reader;
    startClock();
  }

  function answer(field, value, spoken) {
    const one = state.cases[state.place];
    // A second press on a confidence removes it: it is optional.
    one[field] = field === "confidence" && one[field] === value ? 0 : value;
    stopClock();
    startClock();
    keep();
    showAnswers();
    say(one[field] === 0 && field === "confidence" ? "No confidence" : spoken);
  }

  function begin() {
    const name = find("reader").value.trim();
    const problem = find("reader-problem");
    if (!pseudonym.test(name)) {
      problem.textContent = "Enter up to 20 letters and digits, starting with one of these; “_”, “.” and “-” may follow.";
      problem.hidden = false;
      find("reader").setAttribute("aria-invalid", "true");
      find("reader").focus();
      return;
    }
    problem.hidden = true;
    find("reader").removeAttribute("aria-invalid");
    state.reader = name;
    const open = state.cases.findIndex((one) => !done(one));
    go(open < 0 ? total : open);
  }

  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

  function exportAnswers() {
    const lines = ["study,case,reader,answer,class,confidence,seconds"];
    state.cases.forEach((one, number) => {
      if (one.answer === "") return;
      lines.push(
        [
          study.study,
          String(number + 1),
          state.reader,
          one.answer,
          one.label >= 0 ? study.classes[one.label] : "",
          one.confidence ? String(one.confidence) : "",
          String(Math.round(one.seconds)),
        ]
          .map(cell)
          .join(","),
      );
    });
    if (lines.length === 1) {
      find("exported").textContent = "There is nothing to export yet: answer at least one case.";
      return;
    }
    // The mark at the beginning lets spreadsheets read the text as UTF-8.
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff", lines.join("\n"), "\n"], { type: "text/csv" }));
    link.download = `reader_study_${study.study}_${state.reader}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    const count = lines.length - 1;
    find("exported").textContent = `Exported ${count} ${count === 1 ? "answer" : "answers"} as ${link.download}.`;
  }

  function clearAnswers() {
    const button = find("clear");
    if (button.dataset.sure !== "yes") {
      button.dataset.sure = "yes";
      button.textContent = "Press again to clear all answers";
      say(button.textContent);
      return;
    }
    state = { ...empty(), place: state.place };
    go(-1);
    say("All answers are cleared.");
  }

  function tone() {
    find("scan").style.filter = `brightness(${find("brightness").value}%) contrast(${find("contrast").value}%)`;
  }

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches('input:not([type="checkbox"])');
    if (typing || event.ctrlKey || event.altKey || event.metaKey || !find("keys").checked) return;
    const key = event.key.toLowerCase();
    const onCase = shownView() === "desk";
    const button =
      onCase && key === "r" ? document.querySelector('[data-answer="real"]')
      : onCase && key === "s" ? document.querySelector('[data-answer="synthetic"]')
      : onCase && named && /^[1-9]$/.test(key) ? document.querySelector(`[data-class="${Number(key) - 1}"]`)
      : onCase && key === "arrowright" ? find("next")
      : onCase && key === "arrowleft" ? find("back")
      : shownView() === "finish" && key === "arrowleft" ? find("again")
      : null;
    if (!button || (event.repeat && !key.startsWith("arrow"))) return;
    event.preventDefault();
    button.click();
  });

  for (const button of document.querySelectorAll("[data-answer]")) {
    button.addEventListener("click", () => answer("answer", button.dataset.answer, button.dataset.answer));
  }
  for (const button of document.querySelectorAll("[data-class]")) {
    const label = Number(button.dataset.class);
    button.addEventListener("click", () => answer("label", label, study.classes[label]));
  }
  for (const button of document.querySelectorAll("[data-confidence]")) {
    const level = Number(button.dataset.confidence);
    button.addEventListener("click", () => answer("confidence", level, `Confidence ${level}`));
  }
  find("begin").addEventListener("click", begin);
  find("reader").addEventListener("keydown", (event) => {
    if (event.key === "Enter") begin();
  });
  find("back").addEventListener("click", () => go(state.place - 1));
  find("next").addEventListener("click", () => go(state.place + 1));
  find("again").addEventListener("click", () => go(total - 1));
  find("export").addEventListener("click", exportAnswers);
  find("clear").addEventListener("click", clearAnswers);
  find("brightness").addEventListener("input", tone);
  find("contrast").addEventListener("input", tone);
  find("reset").addEventListener("click", () => {
    find("brightness").value = find("contrast").value = "100";
    tone();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return startClock();
    stopClock();
    keep();
  });
  window.addEventListener("pagehide", () => {
    stopClock();
    keep();
  });
  show();
})();
