"use strict";
(async () => {
  const find = (id) => document.getElementById(id);
  const shown = JSON.parse(find("volumes").textContent);
  const { low, high } = shown;
  const canvas = find("volume-canvas");
  const slices = ["sagittal", "coronal", "axial"].map((name) => find(`volume-${name}`)); // along x, y, z
  const darkest = find("volume-darkest");
  const brightest = find("volume-brightest");
  const turn = find("volume-turn");
  const tilt = find("volume-tilt");
  const numbers = (value) => String(Number(value.toPrecision(3)));

  if (!document.createElement("canvas").getContext("webgl2")) return; // the page already shows a sentence for such browsers
  const viewer = new niivue.Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.4, 0.75, 1, 1],
    crosshairWidth: 0.15, // voxels
    dragAndDropEnabled: false,
    fontColor: [1, 0.9, 0.4, 1],
    isRadiologicalConvention: true,
    loadingText: "",
    logLevel: "error",
    multiplanarLayout: 2, // a grid
    multiplanarShowRender: 1, // always
    sagittalNoseLeft: true,
    show3Dcrosshair: true,
  });
  find("volume-view").hidden = false;
  try {
    await viewer.attachToCanvas(canvas);
  } catch {
    find("volume-view").hidden = true;
    return;
  }
  find("volume-missing").hidden = true;
  viewer.setRenderAzimuthElevation(160, 10); // from the front
  canvas.tabIndex = -1; // the controls do everything that the picture does, also by keyboard
  // The wheel scrolls the page until somebody works in the picture.
  find("volume-stage").addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) event.stopPropagation();
  }, { capture: true, passive: true });

  // Sliders move with the picture, and the picture with them.
  let silent = false;
  const silently = (change) => {
    silent = true;
    change();
    silent = false;
  };
  const current = () => viewer.volumes[0];
  const size = () => current().dimsRAS.slice(1, 4);

  function showPlace(place) {
    size().forEach((length, axis) => {
      const at = Math.min(length, Math.max(1, Math.floor(place.frac ? place.frac[axis] * length : length / 2) + 1));
      slices[axis].value = at;
      find(`${slices[axis].id}-said`).textContent = `${at} of ${length}`;
    });
    const value = place.values && place.values[0] ? place.values[0].value : NaN;
    find("volume-value").textContent = Number.isFinite(value) ? numbers(value) : "–";
  }

  function showWindow() {
    const volume = current();
    darkest.value = volume.cal_min;
    brightest.value = volume.cal_max;
    find("volume-darkest-said").textContent = numbers(volume.cal_min);
    find("volume-brightest-said").textContent = numbers(volume.cal_max);
  }

  function showTurn() {
    const { renderAzimuth, renderElevation } = viewer.scene;
    turn.value = ((renderAzimuth % 360) + 360) % 360;
    tilt.value = renderElevation;
    find("volume-turn-said").textContent = `${turn.value}°`;
    find("volume-tilt-said").textContent = `${tilt.value}°`;
  }

  function setWindow(from, to) {
    const volume = current();
    volume.cal_min = from;
    volume.cal_max = to;
    silently(() => viewer.updateGLVolume());
    showWindow();
  }

  viewer.onLocationChange = showPlace;
  viewer.onIntensityChange = () => silent || showWindow();
  viewer.onAzimuthElevationChange = showTurn;

  let wanted = 0;
  async function show(number) {
    wanted = number;
    const chosen = shown.volumes[number];
    const before = current();
    const window = before ? [before.cal_min, before.cal_max] : [low, high];
    const volume = await niivue.NVImage.loadFromBase64({ base64: chosen.nifti, name: "volume.nii.gz", colormap: "gray", cal_min: window[0], cal_max: window[1] });
    if (number !== wanted) return; // another volume was chosen in the meantime
    silently(() => {
      if (before) viewer.removeVolume(before);
      viewer.addVolume(volume);
    });
    find("volume-kind").textContent = chosen.kind === "REAL" ? "REAL scan of a patient" : "SYNTHETIC, not for diagnosis";
    find("volume-name").textContent = chosen.name.slice(chosen.kind.length + 2);
    canvas.setAttribute("aria-label", `${chosen.name}: axial, coronal and sagittal plane and 3D view`);
    size().forEach((length, axis) => { slices[axis].max = length; });
    // Between voxels a plane would be the mean of two: start in the middle of one, as the contact sheets do.
    if (!before) viewer.scene.crosshairPos = size().map((length) => (Math.floor(length / 2) + 0.5) / length);
    viewer.drawScene();
    viewer.createOnLocationChange();
    showWindow();
    showTurn();
    find("volume-view").dataset.shown = String(number);
  }

  const chooser = find("volume-chooser");
  shown.volumes.forEach((volume, number) => chooser.add(new Option(volume.name, String(number))));
  chooser.addEventListener("change", () => show(Number(chooser.value)));
  find("volume-planes").addEventListener("change", (event) => viewer.setSliceType(Number(event.target.value)));
  slices.forEach((slider) => slider.addEventListener("input", () => {
    viewer.scene.crosshairPos = size().map((length, axis) => (Number(slices[axis].value) - 0.5) / length);
    viewer.drawScene();
    viewer.createOnLocationChange();
  }));
  for (const slider of [darkest, brightest]) {
    slider.min = low;
    slider.max = high;
    slider.step = (high - low) / 200;
    slider.addEventListener("input", () => {
      const least = (high - low) / 100;
      let [from, to] = [Number(darkest.value), Number(brightest.value)];
      if (to - from < least && slider === darkest) from = to - least;
      if (to - from < least && slider === brightest) to = from + least;
      setWindow(from, to);
    });
  }
  find("volume-whole").addEventListener("click", () => setWindow(low, high));
  for (const slider of [turn, tilt]) {
    slider.addEventListener("input", () => viewer.setRenderAzimuthElevation(Number(turn.value), Number(tilt.value)));
  }
  await show(0);
})();
