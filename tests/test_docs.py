"""Documentation that holds: commands and options exist, the tutorial runs, links lead somewhere, formulas are the code's."""

import argparse
import importlib
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch.distributed.run import get_args_parser as torch_parser

import medsynth
from medsynth.api.manual import format_help
from medsynth.api.parser import parse_arguments
from medsynth.cli import run_command, run_parser
from medsynth.config import OPTIONS, PIPELINES, GuidanceOptions, SolverOptions, options_of
from medsynth.config.declared import manual_of
from medsynth.diffusion import (
    dpmpp_2m,
    draw_sigma,
    guide,
    heun,
    loss_weight,
    noise_embedding_position,
    noise_levels,
    precondition,
    resolve_solver,
)
from medsynth.evaluation.downstream import Settings
from medsynth.evaluation.downstream.experiment import ProbeSettings
from medsynth.evaluation.evaluate import score_downstream, score_membership, score_privacy
from medsynth.evaluation.fidelity import FidelitySettings
from medsynth.evaluation.privacy import GateSettings
from medsynth.evaluation.privacy.nearness import Thresholds, calibrate
from medsynth.measures.distances import Kernels, frechet_distance, kernel_distance
from medsynth.measures.statistics import _satterthwaite, holm
from medsynth.networks.condition import ConditionEmbedding
from medsynth.networks.denoiser import Denoiser
from medsynth.networks.haar import HaarTransform
from medsynth.pipeline import plan_recipe
from medsynth.training.batches import class_shares
from medsynth.training.callbacks import MEMORISATION_SCANS, PREVIEW_SCANS
from medsynth.training.module import average_share

TOP = Path(__file__).parents[1]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
TUTORIAL = TOP / "docs" / "tutorial.md"
NAMES = [str(page.relative_to(TOP)) for page in PAGES]
# Verbs that have no options of their own class.
OTHERS = ("run", "configs", "completion")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The commands of a bash block, a line each, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def spans(page: Path) -> list[str]:
    """Inline code outside fenced blocks."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


# Commands and options ----------------------------------------------------------------------------------------------------


def check_recipe(arguments: list[str]) -> None:
    """A recipe with its variables, down to the options of its verbs."""
    options = run_parser().parse_args(arguments)
    variables = dict(part.split("=", 1) for part in options.set)
    assert plan_recipe(options.recipe, out=options.out, variables=variables)


def check_script(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark or a slow test whose own parser takes the arguments; nothing of it runs."""
    source = TOP / Path(*module.split(".")).with_suffix(".py")
    assert source.is_file(), module
    if not arguments or "ArgumentParser" not in source.read_text(encoding="utf-8"):
        return

    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *words: object) -> None:
        parse(self, *words)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        importlib.import_module(module).main()


def launched(words: list[str]) -> list[str]:
    """The command that torchrun, whose own parser reads its options, or srun starts in every process."""
    if words[0] == "torchrun":
        options = torch_parser().parse_args(words[1:])
        assert options.module, "torchrun starts a module here"
        return [options.training_script, *options.training_script_args]
    return words[words.index("medsynth") :] if words[0] == "srun" else words


BLOCKS = [
    pytest.param(line, id=f"{page.name}: {line[:60]}")
    for page in PAGES
    for language, text in blocks(page)
    if language == "bash"
    for line in commands(text)
    if ".venv/" not in line  # the two set-up commands, which `.ci/run` runs
]


def check_command(words: list[str]) -> None:
    """A command of medsynth, its options or, for a recipe, those of all its verbs; nothing runs."""
    verb, *arguments = words
    if verb == "run":
        check_recipe(arguments)
    elif verb in OTHERS:
        assert not arguments
    else:
        assert parse_arguments(verb, arguments)


@pytest.mark.parametrize("line", BLOCKS)
def test_commands_in_blocks_parse(line, monkeypatch):
    first, *words = launched(shlex.split(line))
    if first == "medsynth":
        check_command(words)
    elif [first, *words[:1]] == ["python", "-m"]:
        check_script(words[1], words[2:], monkeypatch)
    elif first == "python":
        assert (TOP / words[0]).is_file()
    else:
        assert (TOP / first).is_file(), f"{line}: need a command that this test knows"


def known_options(verb: str | None = None) -> set[str]:
    """Options of a verb, or of all verbs, recipes, benchmarks and slow tests."""
    if verb == "run":
        return {"--out", "--set", "--help"}
    verbs = OPTIONS if verb is None else {verb} & OPTIONS.keys()
    found = {f"--{name}" for each in verbs for name in options_of(OPTIONS[each])}
    found |= {"--config", "--print_config", "--help"}
    if verb is not None:
        return found
    scripts = [
        file.read_text(encoding="utf-8")
        for folder in ("benchmarks", "tests/slow")
        for file in (TOP / folder).rglob("*.py")
    ]
    return found.union(["--set", "--version"], *(re.findall(r'"(--\w+)"', script) for script in scripts))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_options_in_the_text_exist(page, monkeypatch):
    """Also options without hyphens, such as `network.stem latent`, by the names of their groups."""
    every = known_options()
    groups = {name.partition(".")[0] for name in every if "." in name}
    for span in spans(page):
        words = span.split()
        if words[0] == "medsynth" and len(words) > 1 and words[1] != "VERB" and not words[1].startswith("-"):
            assert words[1] in (*OPTIONS, *OTHERS), span
            if words[1] == "run" and words[2:] and not words[2].startswith("-"):
                assert words[2] in PIPELINES.names(), span
            options = known_options(words[1])
        elif re.match(r"python -m (benchmarks|tests\.slow)\.", span):
            with monkeypatch.context() as patch:
                check_script(words[2], shlex.split(span)[3:], patch)
            continue
        elif re.fullmatch(r"benchmarks(/[\w]+)+(\.\w+)?", words[0]):
            assert list(TOP.glob(f"{words[0]}*")), span
            continue
        elif span.startswith("--"):
            options = every
        else:
            if re.fullmatch(r"[a-z]+\.[a-z_]+", words[0]) and f"--{words[0].partition('.')[0]}" in groups:
                assert f"--{words[0]}" in every, f"{page.name}: {span}"
            continue
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in options, f"{page.name}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)", text):
        if target.startswith("https://"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, f"{page.name}: #{anchor}"


# Manual pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("everything", [False, True], ids=["help", "help all"])
@pytest.mark.parametrize("verb", OPTIONS)
def test_the_manual_page_of_a_verb(verb, everything, monkeypatch):
    """What must be given stands in the usage line, nothing is in the parser's jargon, and the example parses."""
    monkeypatch.setenv("COLUMNS", "100")
    text = format_help(verb, everything=everything)
    usage = " ".join(text.split("\n\n")[0].split())
    required = [name for name, option in options_of(OPTIONS[verb]).items() if option.required]
    assert usage.startswith(f"usage: medsynth {verb} ")
    assert usage.endswith("[options]")
    assert usage.count("--") == len(required)
    assert all(f" --{name} " in usage for name in required)
    assert manual_of(OPTIONS[verb])[0] in " ".join(text.split())
    for jargon in ("CONFIG", "type:", "Union", "null", "ITEM", "Path to a configuration file"):
        assert jargon not in text
    example = text.partition("example:\n")[2].partition("\n\n")[0].replace("\\\n", " ")
    first, *words = shlex.split(example.partition(" > ")[0])
    assert (first, words[0]) == ("medsynth", verb)
    check_command(words)


def test_the_first_page_lists_every_verb_once_and_its_examples_parse(capsys):
    assert run_command(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb in (*OPTIONS, *OTHERS):
        assert sum(line.startswith(f"  {verb} ") for line in lines) == 1, verb
    examples = [shlex.split(line)[1:] for line in lines if line.startswith("  medsynth ")]
    assert [words[0] for words in examples] == ["index", "train", "sample", "evaluate", "augment", "card"]
    for words in examples:
        check_command(words)


def test_the_example_of_a_recipe_parses():
    text = run_parser().format_help()
    check_recipe(shlex.split(text[text.index("example:") :])[3:])


# Commands and snippets that run ----------------------------------------------------------------------------------------

# The numbers with which they run here; what a command does not give is added. `small_settings` has those that are no options.
SMALL = {
    "demo": {"--scans": "48"},
    "train": {
        "--max_steps": "2",
        "--batch_size": "4",
        "--grid.size": "32",
        "--monitor.validate_every": "0",
        "--monitor.preview_every": "2",
    },
    "sample": {"--count": "6", "--solver.steps": "2"},
    "evaluate": {"--downstream.seeds": "2"},
}
SMALLER_STUDY = {"--reader_study": "4"}  # replaced where it stands, never added
SMALL_LINES = {"steps = 900": "steps = 2"}
# What the tutorial names that is the reader's own, or stands elsewhere.
NOT_MADE = {"labels.csv", "report.md"}


@pytest.fixture
def small_settings(monkeypatch):
    """A quick evaluation, whose gate passes with the few patients there are; small previews."""
    low = {"min_patients": 2, "min_power": 0.01, "min_power_parts": 0.01}
    gate = GateSettings(**low, max_false_alarms=0.9, planted=15, membership_scans=2)
    probe = ProbeSettings(steps=5, copies=0)
    for name, replacement in {
        "score_privacy": partial(score_privacy, settings=gate),
        "score_membership": partial(score_membership, settings=gate),
        "score_downstream": partial(score_downstream, settings=Settings(resamples=100, probe=probe)),
        "FidelitySettings": partial(FidelitySettings, repeats=10, ssim_pairs=2),
    }.items():
        monkeypatch.setattr(f"medsynth.evaluation.evaluate.{name}", replacement)
    for module in ("verdict", "handover"):  # which let nothing pass at other thresholds than those that ship
        monkeypatch.setattr(f"medsynth.evaluation.{module}.other_thresholds", lambda settings: "")
    monkeypatch.setitem(PREVIEW_SCANS, 2, 1)
    monkeypatch.setitem(MEMORISATION_SCANS, 2, 2)


def shrink(words: list[str]) -> list[str]:
    """Verb and arguments with the small numbers in place of their own."""
    small, result = dict(SMALL.get(words[0], {})), list(words)
    for place, word in enumerate(words[:-1]):
        if word in small or word in SMALLER_STUDY:
            result[place + 1] = small.pop(word, None) or SMALLER_STUDY[word]
    return [*result, *(part for pair in small.items() for part in pair), "--progress", "false"]


def run_line(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command of medsynth in the small; return its verb."""
    program, *words = shlex.split(line)
    assert program == "medsynth", line
    code = run_command(shrink(words))
    said = capsys.readouterr()
    assert code == 0, f"{line}: {said.err}{said.out}"
    return words[0]


@pytest.mark.usefixtures("small_settings")
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    untouched, ran = set(SMALL_LINES), []
    for language, text in blocks(TUTORIAL):
        if language == "bash":
            ran += [run_line(line, capsys) for line in commands(text)]
        elif language == "python":
            for before, after in SMALL_LINES.items():
                if before in text:
                    untouched.discard(before)
                    text = text.replace(before, after)
            exec(compile(text, str(TUTORIAL), "exec"), space)
    assert not untouched
    assert {"demo", "index", "train", "sample", "evaluate", "augment", "card"} <= set(ran)
    pattern = r"[\w.-]+(/[\w.-]*)+|[\w-]+\.(csv|html|json|md|yaml)"
    named = {span for span in spans(TUTORIAL) if re.fullmatch(pattern, span)} - NOT_MADE
    assert len(named) > 10
    assert sorted(name for name in named if not (tmp_path / name).exists()) == []


@pytest.mark.usefixtures("small_settings")
def test_the_six_commands_of_the_readme_run_on_scans_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = ["path,label,patient_id"]
    random = np.random.default_rng(0)
    for number in range(40):
        label = "viral_pneumonia" if number % 2 else "normal"
        medsynth.write_scan(
            medsynth.Scan(array=random.integers(0, 255, (1, 24, 32)).astype(np.uint8)), f"scans/{number}.png"
        )
        lines.append(f"{number}.png,{label},patient-{number}")
    Path("labels.csv").write_text("\n".join(lines))
    template = (TOP / "data_cards" / "template.md").read_text(encoding="utf-8")
    Path("our_scans.yaml").write_text(template.split("---\n")[1].replace("licence: null", "licence: CC0-1.0"))
    block = next(text for language, text in blocks(TOP / "README.md") if language == "bash" and "index" in text)
    verbs = [run_line(line, capsys) for line in commands(block)]
    assert verbs == ["index", "train", "sample", "evaluate", "augment", "card"]
    assert Path("augmented/cohort.csv").is_file()
    assert "CC0-1.0" in Path("synthetic/data_card.md").read_text(encoding="utf-8")


# The maths, as the page writes it ---------------------------------------------------------------------------------------


def test_the_maths_page_numbers_its_formulas_and_names_its_sources():
    text = (TOP / "docs" / "maths.md").read_text(encoding="utf-8")
    assert re.findall(r"\\tag\{(\d+)\}", text) == [str(number) for number in range(1, 15)]
    for source in ("2206.00364", "2211.01095", "2404.07724", "2207.12598", "2108.01073", "1801.01401", "1911.07023"):
        assert source in text


def test_formulas_1_and_2_preconditioning_in_bands():
    class Constant(torch.nn.Module):
        """Returns half of what it gets, and keeps the noise level that it is conditioned on."""

        def __init__(self) -> None:
            super().__init__()
            self.class_embedding = ConditionEmbedding(2, 0, 4)

        def forward(self, scaled, position, class_labels):
            self.position = position
            return scaled / 2

    bands = torch.tensor([0.5, 0.1, 0.2, 0.05])
    denoiser = Denoiser(Constant(), HaarTransform(1), bands).double()
    noisy = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    sigma = torch.tensor([0.02, 0.7, 30.0], dtype=torch.float64)
    condition = denoiser.embedding.make(torch.zeros(3, dtype=torch.int64))
    found = denoiser(noisy, sigma, condition)
    stem = HaarTransform(1)
    s, k = sigma[:, None, None, None], bands.double()[None, :, None, None]
    seen = stem(noisy)
    skip, output, scale = k**2 / (s**2 + k**2), s * k / (s**2 + k**2).sqrt(), 1 / (s**2 + k**2).sqrt()
    expected = stem.inverse(skip * seen + output * (scale * seen / 2))
    assert torch.allclose(found, expected, atol=1e-7)
    assert torch.allclose(denoiser.unet.position, 250 * (sigma.log() / 4 + 2))
    assert torch.allclose(noise_embedding_position(sigma), 250 * (sigma.log() / 4 + 2))
    # The stem: neighbours a, b become (a + b) / sqrt 2 and (a - b) / sqrt 2, and W W^T = 1.
    line = torch.tensor([3.0, 1.0]).reshape(1, 1, 2, 1).repeat(1, 1, 1, 2)
    assert torch.allclose(stem(line).flatten(), torch.tensor([4.0, 2.0, 0.0, 0.0]))
    assert torch.allclose(stem.inverse(seen), noisy)


def test_formula_3_loss_weight_and_noise_levels():
    sigma = torch.tensor([0.01, 0.5, 40.0], dtype=torch.float64)
    weight = (sigma**2 + 0.4**2) / (sigma * 0.4) ** 2
    assert torch.allclose(loss_weight(sigma, 0.4), weight)
    assert torch.allclose(weight * precondition(sigma, 0.4).output ** 2, torch.ones(3, dtype=torch.float64))
    drawn = draw_sigma(100_000, mean=-0.8, std=1.3, generator=torch.Generator().manual_seed(0)).log()
    assert (float(drawn.mean()), float(drawn.std())) == pytest.approx((-0.8, 1.3), abs=1e-3)


def test_formula_4_class_shares():
    counts = np.array([9, 100, 400])
    for exponent in (0.0, 0.5, 1.0):
        expected = counts**exponent / (counts**exponent).sum()
        assert class_shares(counts, exponent) == pytest.approx(expected)


@pytest.mark.parametrize("m", [1, 7, 100_000])
def test_formula_5_moving_average(m):
    average, weights = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, -2.0])]
    expected = average[0] + (1 - min(0.999, (1 + m) / (10 + m))) * (weights[0] - average[0])
    assert torch.allclose(torch.lerp(average[0], weights[0], average_share(0.999, m)), expected)


def test_formulas_6_to_8_noise_levels_and_solvers():
    low, high, rho, steps = 0.02, 80.0, 7.0, 10
    levels = [
        (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(steps)
    ] + [0.0]
    sigmas = noise_levels(resolve_solver(SolverOptions(steps=steps)))
    assert sigmas.tolist() == pytest.approx(levels)

    def denoise(noisy, sigma):
        shape = sigma.reshape(-1, 1, 1)
        return noisy.tanh() * 0.3 / (0.3 + shape) + 0.1 * shape.cos()

    noise = torch.randn(2, 1, 3, dtype=torch.float64)
    at = lambda x, i: denoise(x, torch.full((2,), levels[i], dtype=torch.float64))  # noqa: E731
    x, known = noise * levels[0], []
    for i in range(1, steps + 1):
        known.append(at(x, i - 1))
        if levels[i] == 0:
            x = known[-1]
            break
        h = np.log(levels[i - 1] / levels[i])
        tilde = known[-1]
        if i > 1:
            tilde = known[-1] + h / (2 * np.log(levels[i - 2] / levels[i - 1])) * (known[-1] - known[-2])
        x = levels[i] / levels[i - 1] * x - (np.exp(-h) - 1) * tilde
    assert torch.allclose(dpmpp_2m(denoise, noise, sigmas), x)

    x = noise * levels[0]
    for i in range(1, steps + 1):
        slope = (x - at(x, i - 1)) / levels[i - 1]
        guess = x + (levels[i] - levels[i - 1]) * slope
        if levels[i] > 0:
            guess = x + (levels[i] - levels[i - 1]) * (slope + (guess - at(guess, i)) / levels[i]) / 2
        x = guess
    assert torch.allclose(heun(denoise, noise, sigmas), x)


@pytest.mark.parametrize(("sigma", "guided"), [(0.2, False), (0.21, True), (5.0, True), (5.1, False)])
def test_formula_9_guidance_in_its_interval(sigma, guided):
    noisy = torch.randn(2, 1, 4, dtype=torch.float64)
    denoise = lambda noisy, sigma, condition: noisy * condition[0].reshape(-1, 1, 1)  # noqa: E731
    with_class, without = (torch.full((2,), 0.9).double(),), (torch.full((2,), 0.4).double(),)
    options = GuidanceOptions(scale=2.5, sigma_low=0.2, sigma_high=5.0)
    found = guide(denoise, with_class, without, options)(noisy, torch.full((2,), sigma, dtype=torch.float64))
    expected = 0.4 * noisy + 2.5 * (0.9 * noisy - 0.4 * noisy) if guided else 0.9 * noisy
    assert torch.allclose(found, expected, atol=1e-6)


def test_formulas_10_and_11_distances():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(12, 4)), random.normal(0.5, 1.3, size=(9, 4))
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    apart = lambda a: kernel(a, a)[~np.eye(len(a), dtype=bool)].mean()  # noqa: E731
    assert kernel_distance(Kernels.of(x, y)) == pytest.approx(apart(x) + apart(y) - 2 * kernel(x, y).mean())
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected = shift + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(x, y) == pytest.approx(expected)


def test_formula_12_the_score_of_the_privacy_gate():
    random = np.random.default_rng(1)
    values = random.normal([-1.0, 0.0, -0.3, 0.1], [0.3, 0.05, 0.1, 0.2], size=(2000, 4))
    labels = np.zeros(2000, dtype=int)
    thresholds = calibrate(values, labels, 1, 0.02 / 3)
    assert isinstance(thresholds, Thresholds)
    z = ((values - thresholds.typical[0]) / thresholds.spread).min(axis=1)
    assert thresholds.scores(values, labels) == pytest.approx(z)
    assert thresholds.cut == pytest.approx(np.sort(z)[int(0.02 / 3 * 2001) - 1])


def test_formulas_13_and_14_degrees_of_freedom_and_holm():
    seeds, patients, of_seeds, of_patients = 5, 40, 0.02, 0.05
    nu = (of_seeds + of_patients) ** 2 / (of_seeds**2 / (seeds - 1) + of_patients**2 / (patients - 1))
    assert _satterthwaite(of_seeds, seeds, of_patients, patients) == pytest.approx(nu)
    p = np.array([0.03, 0.001, 0.02])
    rising = np.sort(p)
    expected = [min(1, max((3 - j) * rising[j] for j in range(i + 1))) for i in range(3)]
    assert np.sort(holm(p)) == pytest.approx(expected)
    assert holm(p)[1] == pytest.approx(expected[0])
