"""The two templates of a report (Jinja): the HTML page and its Markdown twin.

The page asks nobody for anything: styles and plots are inside, and its content security policy forbids scripts and
every request.
"""

CSS = """
:root { color-scheme: light dark;
  --sans: "Inter", "Segoe UI", system-ui, -apple-system, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  --ink: #1d2127; --soft: #5d6570; --grid: #dfe2e6; --paper: #fdfdfc; --card: #f4f5f6; --link: #0067a3;
  --warn: #8a4b00; --warn-paper: #fff4e0;
  --series-0: #0072b2; --series-1: #d55e00; --series-2: #009e73; --series-3: #aa4499; --series-4: #e69f00;
  --series-5: #56b4e9; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e8eaed; --soft: #a3abb5; --grid: #33383f; --paper: #15181c; --card: #1d2126; --link: #6bb8f0;
  --warn: #ffc46b; --warn-paper: #33270f;
  --series-0: #4aa8e0; --series-1: #f0813a; --series-2: #2fc49a; --series-3: #dd8acb; --series-4: #f0b93a;
  --series-5: #8fd0f7; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 var(--sans);
  font-variant-numeric: tabular-nums; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 12px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 44px 0 4px; letter-spacing: -0.005em; }
p { margin: 0 0 12px; max-width: 74ch; overflow-wrap: anywhere; }
a { color: var(--link); }
.kicker { color: var(--soft); font-size: 13px; margin: 0 0 6px; }
.lead { font-size: 18px; line-height: 1.5; }
.note { color: var(--soft); font-size: 13.5px; max-width: 96ch; }
.warn { background: var(--warn-paper); color: var(--warn); padding: 10px 14px; border-radius: 6px; max-width: none; }
dl.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(134px, 1fr)); gap: 10px; margin: 24px 0 0; }
.tiles div { background: var(--card); border-radius: 8px; padding: 10px 12px; }
.tiles dt { color: var(--soft); font-size: 12.5px; }
.tiles dd { margin: 0; font-size: 18px; font-weight: 600; white-space: nowrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 8px 0 4px; font-size: 14px; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: 12.5px; vertical-align: bottom; }
td.text, th.text { text-align: left; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 220px; }
td strong { font-weight: 650; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px 28px;
  margin-top: 12px; }
.plots.one { grid-template-columns: 1fr; overflow-x: auto; }
.plots.one svg { min-width: 640px; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; }
code { font: 12.5px/1.5 var(--mono); overflow-wrap: anywhere; white-space: normal; }
details { border-top: 1px solid var(--grid); padding: 10px 0; }
details:last-of-type { border-bottom: 1px solid var(--grid); }
summary { cursor: pointer; font-weight: 600; }
.folds { margin-top: 44px; }
@media print { details { display: none; } main { padding: 0; } }
"""

HTML = """{% macro shown(table) %}
<div class="wide"><table>
<thead><tr>{% for name in table.head %}<th{% if loop.index <= table.words %} class="text"{% endif %}>{{ name }}</th>
{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr>
{% for cell in row %}<td{% if loop.index <= table.words %} class="text{{ " long" if cell|length > 40 }}"{% endif %}>\
{{ cell }}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="color-scheme" content="light dark">
<title>fednas run {{ view.id }}</title>
<style>{{ css }}</style>
</head>
<body>
<main>
<header>
<p class="kicker">fednas · run {{ view.id }}</p>
<h1>{{ view.headline }}</h1>
{% if view.story %}<p class="lead">{{ view.story }}</p>{% endif %}
{% for note in view.notes %}<p class="warn">{{ note }}</p>{% endfor %}
<dl class="tiles">
{% for name, value in view.tiles %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>
<p class="note">Time: {{ view.time }}; until this page was written.</p>
</header>

{% if view.models %}
<section>
<h2>The chosen models</h2>
<p class="note">For each device the best network within its budget on the validation images, of equally good
ones the cheapest. MACs: multiply-accumulates of one image. Latency:
one image, measured where the run ended. Export error: the largest difference of a logit between the exported
ONNX file and the trained network.</p>
<div class="wide"><table>
<thead><tr><th class="text">Device</th><th>Test<br>{{ view.metric }}</th>
<th>Validation<br>{{ view.metric }}</th><th>Budget</th>
<th>MACs</th><th>Parameters</th><th>Weights</th><th>Latency</th><th>Export<br>error</th>
<th class="text">Files</th></tr></thead>
<tbody>
{% for model in view.models %}
<tr><td class="text"><span class="dot" style="background: var(--series-{{ model.colour }})"></span>
{{- model.device }}</td><td><strong>{{ model.test }}</strong></td>
<td>{{ model.validation }}</td><td>{{ model.budget }}</td><td>{{ model.macs }}</td>
<td>{{ model.params }}</td><td>{{ model.bytes }}</td><td>{{ model.latency }}</td>
<td>{{ model.error }}</td>
<td class="text">{% for name, link in model.files %}<a href="{{ link }}">{{ name }}</a>{{ " · " if not loop.last }}
{% else %}–{% endfor %}</td></tr>
{% endfor %}
</tbody></table></div>
{% if view.supernet %}<p class="note">{{ view.supernet }}</p>{% endif %}
</section>
{% endif %}

{% if view.clients %}
<section>
<h2>Each client's own model</h2>
<p class="note">{{ view.clients_story }} Latency: one image, measured on the device, median.</p>
<div class="wide"><table>
<thead><tr><th class="text">Client</th><th class="text">Budget</th><th>{{ view.metric|capitalize }}<br>there</th>
<th>Images<br>tested</th>
<th>MACs</th><th>Weights</th><th>Latency<br>there</th><th class="text"></th></tr></thead>
<tbody>
{% for row in view.clients %}
<tr><td class="text">{{ row.client }}</td><td class="text">{{ row.budget }}</td>
<td>{% if row.held_out %}<strong>{{ row.value }}</strong>{% else %}{{ row.value }}{% endif %}</td>\
<td>{{ row.tested }}</td><td>{{ row.macs }}</td><td>{{ row.bytes }}</td>
<td>{{ row.latency }}</td><td class="text long">{{ row.reason }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if view.more_clients %}<p class="note">And {{ view.more_clients }} more in result.json.</p>{% endif %}
</section>
{% endif %}

{% for section in view.sections %}
<section>
<h2>{{ section.title }}</h2>
<p class="note">{{ section.text }}</p>
{% if section.table and not section.wide %}{{ shown(section.table) }}{% endif %}
<div class="plots{{ " one" if section.wide }}">
{% for title, svg in section.plots %}<figure role="img" aria-label="{{ title }}">{{ svg }}</figure>
{% endfor %}
</div>
{% if section.caption %}<p class="note">{{ section.caption }}</p>{% endif %}
{% if section.table and section.wide %}{{ shown(section.table) }}{% endif %}
</section>
{% endfor %}

<section>
<h2>Failures</h2>
{% if view.failures %}
<p class="note">Clients that gave no usable answer. Their rounds went on without them.</p>
<div class="wide"><table>
<thead><tr><th class="text">Reason</th><th class="text">Clients</th>
<th class="text">Rounds</th><th>Times</th></tr></thead>
<tbody>
{% for row in view.failures %}
<tr><td class="text long">{{ row.reason }}</td><td class="text long">{{ row.clients }}</td>
<td class="text long">{{ row.rounds }}</td><td>{{ row.times }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if view.more_failures %}<p class="note">And {{ view.more_failures }} more reasons in events.jsonl.</p>{% endif %}
{% else %}
<p class="note">None: every client that was asked gave a usable answer.</p>
{% endif %}
</section>

<section class="folds">
{% if view.models %}
<details><summary>Architectures</summary>
<div class="wide"><table><tbody>
{% for model in view.models %}<tr><td class="text">{{ model.device }}</td>
<td class="text long"><code>{{ model.arch }}</code></td></tr>
{% endfor %}</tbody></table></div></details>
{% endif %}
{% if view.evaluations %}
<details><summary>Evaluations</summary>{{ shown(view.evaluations) }}</details>
{% endif %}
<details><summary>Settings</summary>
<div class="wide"><table><tbody>
{% for key, value in view.settings %}<tr><td class="text"><code>{{ key }}</code></td>
<td class="text long">{{ value }}</td></tr>
{% endfor %}</tbody></table></div></details>
<details><summary>Versions</summary>
<div class="wide"><table><tbody>
{% for key, value in view.versions %}<tr><td class="text">{{ key }}</td><td class="text long">{{ value }}</td></tr>
{% endfor %}</tbody></table></div></details>
</section>
</main>
</body>
</html>
"""

MARKDOWN = """# {{ view.headline }}

Run {{ view.id }}. {{ view.story }}
{% for note in view.notes %}

**Note:** {{ note }}
{% endfor %}

|{% for name, _ in view.tiles %} {{ name }} |{% endfor %}

|{% for _ in view.tiles %}---|{% endfor %}

|{% for _, value in view.tiles %} {{ value }} |{% endfor %}

Time: {{ view.time }}; until this page was written.
{% if view.models %}

## The chosen models

| Device | Test {{ view.metric }} | Validation {{ view.metric }} | \
Budget | MACs | Parameters | Weights | Latency | Export error |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
{% for model in view.models %}
| {{ model.device }} | {{ model.test }} | {{ model.validation }} | {{ model.budget }} | {{ model.macs }} | \
{{ model.params }} | {{ model.bytes }} | {{ model.latency }} | {{ model.error }} |
{% endfor %}
{% if view.supernet %}

{{ view.supernet }}
{% endif %}
{% endif %}
{% if view.clients %}

## Each client's own model

{{ view.clients_story }}

| Client | Budget | {{ view.metric|capitalize }} there | Images tested | MACs | Weights | Latency there | |
|---|---|---:|---:|---:|---:|---:|---|
{% for row in view.clients %}
| {{ row.client }} | {{ row.budget }} | {{ row.value }} | {{ row.tested }} | {{ row.macs }} | {{ row.bytes }} | \
{{ row.latency }} | {{ row.reason }} |
{% endfor %}
{% if view.more_clients %}

And {{ view.more_clients }} more in result.json.
{% endif %}
{% endif %}
{% for title, text, table in view.tables %}

## {{ title }}

{{ text }}

|{% for name in table.head %} {{ name }} |{% endfor %}

|{% for name in table.head %}---{{ ":" if loop.index > table.words }}|{% endfor %}

{% for row in table.rows %}
|{% for cell in row %} {{ cell }} |{% endfor %}

{% endfor %}
{% endfor %}

## Failures

{% if view.failures %}
| Reason | Clients | Rounds | Times |
|---|---|---|---:|
{% for row in view.failures %}
| {{ row.reason }} | {{ row.clients }} | {{ row.rounds }} | {{ row.times }} |
{% endfor %}
{% if view.more_failures %}

And {{ view.more_failures }} more reasons in events.jsonl.
{% endif %}
{% else %}
None: every client that was asked gave a usable answer.
{% endif %}
{% if view.models %}

## Architectures

{% for model in view.models %}
- {{ model.device }}: {{ model.arch }}
{% endfor %}
{% endif %}

## Settings and versions

| Setting | Value |
|---|---|
{% for key, value in view.settings %}
| {{ key }} | {{ value }} |
{% endfor %}
{% for key, value in view.versions %}
| version of {{ key }} | {{ value }} |
{% endfor %}
"""
