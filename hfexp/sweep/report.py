"""The page of a sweep: the table of its trials, and pictures in which one trial can be followed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hfexp.core.secrets import mask_secrets
from hfexp.sweep.plots import Drawing
from hfexp.sweep.ranking import best
from hfexp.sweep.table import TrialTable, command_of, error_of, measured, states
from hfexp.sweep.trials import State, Sweep
from hfexp.tracking.report.page import Block, Code, Picture, Report, Section, Table, Text

TITLES = {
    "history": "Value by trial",
    "front": "Several metrics",
    "learning_curves": "Learning curves",
    "parallel_coordinates": "Parameters and value",
    "slices": "Each parameter",
    "importances": "Importance of parameters",
}

NOT_SHOWN = ("run_id",)
"""Columns of the table that the page leaves out, as people have no use for them."""

SCRIPT = """
(function () {
  var style = document.createElement('style');
  style.textContent = '.dim { opacity: 0.1 !important } tr.on td { background: var(--box) } ' +
    'tr[data-name], th { cursor: pointer } tr[data-name] td { white-space: nowrap } ' +
    '.scroll:has(tr[data-name]) { max-height: 70vh; overflow: auto }';
  document.head.appendChild(style);
  var rows = Array.from(document.querySelectorAll('tr[data-name]'));
  var marks = Array.from(document.querySelectorAll('svg g[id]')).map(function (mark) {
    var found = /-t(\\d+)$/.exec(mark.id);
    return { mark: mark, name: found ? found[1] : null };
  }).filter(function (item) { return item.name !== null; });
  var about = {};
  rows.forEach(function (row) {
    var heads = Array.from(row.closest('table').querySelectorAll('th'));
    about[row.dataset.name] = Array.from(row.cells).map(function (cell, n) {
      return cell.textContent ? heads[n].textContent + ': ' + cell.textContent : '';
    }).filter(Boolean).join('\\n');
  });
  var kept = null;
  function show(name) {
    marks.forEach(function (item) { item.mark.classList.toggle('dim', !(name === null || item.name === name)); });
    rows.forEach(function (row) { row.classList.toggle('on', row.dataset.name === name); });
  }
  function watch(element, name) {
    element.addEventListener('mouseenter', function () { show(name); });
    element.addEventListener('mouseleave', function () { show(kept); });
    element.addEventListener('click', function () { kept = kept === name ? null : name; show(kept); });
  }
  marks.forEach(function (item) {
    var title = document.createElementNS('http://www.w3.org/2000/svg', 'title');
    title.textContent = about[item.name] || 'trial: ' + item.name;
    item.mark.appendChild(title);
    watch(item.mark, item.name);
  });
  rows.forEach(function (row) { watch(row, row.dataset.name); });
  var table = rows.length ? rows[0].closest('table') : null;
  if (table) {
    Array.from(table.querySelectorAll('th')).forEach(function (head, column) {
      var up = false;
      head.addEventListener('click', function () {
        up = !up;
        function key(row) {
          var text = row.cells[column].textContent, number = parseFloat(text);
          return text === '' ? null : isNaN(number) ? text : number;
        }
        rows.sort(function (a, b) {
          var x = key(a), y = key(b);
          if (x === null || y === null) { return (x === null ? 1 : 0) - (y === null ? 1 : 0); }
          var numbers = typeof x === 'number' ? typeof y === 'number' : false;
          var order = numbers ? x - y : String(x).localeCompare(String(y));
          return up ? order : -order;
        });
        rows.forEach(function (row) { row.parentNode.appendChild(row); });
      });
    });
  }
}());
"""
"""Script of the HTML page. It has no `<` and no `&`, so that the page stays well-formed XML."""


@dataclass(frozen=True)
class SweepPage:
    """The page of a sweep, in HTML and in Markdown."""

    sweep: Sweep
    table: TrialTable
    drawings: Mapping[str, Drawing]
    drawn: int
    """Number of trials in the pictures."""

    def html(self) -> str:
        """Render HTML with a sortable table; pointing at a trial highlights it in the table and in all pictures."""
        images = {f"{name}.png": drawing.svg for name, drawing in self.drawings.items()}
        return self._report(SCRIPT).html(images)

    def markdown(self) -> str:
        """Render Markdown, which links to the pictures beside it."""
        return self._report("").markdown()

    def _report(self, script: str) -> Report:
        pictures = [Section(TITLES[name], [Picture(f"{name}.png", TITLES[name])]) for name in self.drawings]
        sections = [self._best(), self._trials(bool(script)), *pictures, self._failures(), self._definition()]
        return Report(self.sweep.name, self._lead(), sections, script)

    def _lead(self) -> str:
        counted = ", ".join(f"{count} {state}" for state, count in states(self.sweep).items() if count)
        goals = zip(self.sweep.objectives, self.sweep.directions, strict=False)
        goal = ", ".join(f"{direction} {metric}" for metric, direction in goals)
        hours = self.sweep.seconds / 3600
        return f"{self.sweep.method}, to {goal}: {counted or 'no trial yet'}; {hours:.2f} hours"

    def _best(self) -> Section:
        found = best(self.sweep.trials, self.sweep.directions)
        blocks = []
        for trial in found[:3]:
            blocks += [
                Text(f"Trial {trial.number}: {measured(self.sweep, trial)}"),
                Code(command_of(self.sweep, trial)),
            ]
        same = len(self.table.ties)
        if same:
            blocks.append(Text(f"{same} more that are as good, as far as the seeds tell, are marked as ties."))
        return Section("Best", blocks)

    def _trials(self, interactive: bool) -> Section:
        table, kept = self.table, [n for n, column in enumerate(self.table.columns) if column not in NOT_SHOWN]
        header = short_names([table.columns[n] for n in kept])
        rows = [[_shown(row[n]) for n in kept] for row in table.rows]
        names = [str(trial.number) for trial in table.trials] if interactive else []
        numbers = frozenset(n for n, c in enumerate(kept) if any(_is_number(row[c]) for row in table.rows))
        strong = frozenset({0} if table.rows and table.rows[0][0] == 1 else ())
        blocks: list[Block] = [Table(header, rows, numbers=numbers, strong=strong, names=names)] if rows else []
        if rows and self.drawn != len(rows):
            blocks.append(Text(f"The pictures show the first {self.drawn} of these {len(rows)} trials."))
        return Section("Trials", blocks)

    def _failures(self) -> Section:
        failed = [trial for trial in self.sweep.trials if trial.state is State.failed]
        rows = [[str(trial.number), str(trial.attempts), mask_secrets(error_of(trial) or "")] for trial in failed]
        return Section("Failures", [Table(("trial", "attempts", "reason"), rows)] if rows else [])

    def _definition(self) -> Section:
        rows = [[key, mask_secrets(text)] for key, text in self.sweep.space.items()]
        space = [Table(("key", "values"), rows, numbers=frozenset())] if rows else []
        return Section("Definition", [*space, Code(mask_secrets(self.sweep.command))])


def short_names(columns: Sequence[str]) -> list[str]:
    """Shorten each key to its last part where no other key has the same."""
    last = [column.rpartition(".")[2] for column in columns]
    return [short if last.count(short) == 1 else column for short, column in zip(last, columns, strict=True)]


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _shown(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)
