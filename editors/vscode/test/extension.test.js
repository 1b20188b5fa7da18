// The extension and the real `mlxgpt lsp`, in as much of VS Code as both use. MLXGPT is the command, as JSON.

const assert = require("node:assert/strict");
const fs = require("node:fs");
const Module = require("node:module");
const os = require("node:os");
const path = require("node:path");
const { after, before, test } = require("node:test");

const resolve = Module._resolveFilename;
Module._resolveFilename = function (name, ...more) {
  return name === "vscode" ? path.join(__dirname, "vscode.js") : resolve.call(this, name, ...more);
};

const vscode = require("vscode");
const manifest = require("../package.json");
const { command, preferences } = require("../src/settings");
const extension = require("../src/extension");

const { editor } = vscode;
const [program, ...prelude] = JSON.parse(process.env.MLXGPT ?? '["mlxgpt"]');
const AREA = "def compute_area(width, height):\n    return width * height\n";
const context = { subscriptions: [] };
let folder;

const defaults = () => Object.fromEntries(
  Object.entries(manifest.contributes.configuration.properties).map(([key, row]) => [key.replace("mlxgpt.", ""), row.default]),
);
const status = () => editor.items[0];

before(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), "mlxgpt-"));
  fs.writeFileSync(path.join(folder, "area.py"), AREA);
  vscode.workspace.workspaceFolders = [{ uri: vscode.Uri.file(folder), name: "project", index: 0 }];
  // A program that is started by another (python -m mlxgpt.cli) is one executable file all the same.
  const start = path.join(folder, "mlxgpt");
  fs.writeFileSync(start, `#!/bin/sh\nexec ${[program, ...prelude].map((word) => `'${word}'`).join(" ")} "$@"\n`, { mode: 0o755 });
  editor.settings = { ...defaults(), path: start, arguments: ["--root", "${workspaceFolder}"] };
});

after(async () => {
  await extension.deactivate();
  fs.rmSync(folder, { recursive: true });
});

test("the command names the folder where there is one", () => {
  const get = (name) => defaults()[name];
  assert.deepEqual(command(get, "/a"), { command: "mlxgpt", args: ["lsp", "--root", "/a", "--false-show", "0.3"] });
  assert.deepEqual(command(get), { command: "mlxgpt", args: ["lsp", "--false-show", "0.3"] });
  const own = { path: "${workspaceFolder}/.venv/bin/mlxgpt", arguments: ["--multiline", "--root=${workspaceFolder}"] };
  assert.deepEqual(command((name) => own[name], "/a"), { command: "/a/.venv/bin/mlxgpt", args: ["lsp", "--multiline", "--root=/a"] });
  assert.deepEqual(command((name) => own[name]).args, ["lsp", "--multiline"]);
  assert.deepEqual(preferences(get), { mlxgpt: { disabled: [], threshold: null, multiline: null } });
});

test("it suggests what the project has, and says why where nothing", async () => {
  await extension.activate(context);
  assert.match(status().tooltip, /^Ready/, editor.log.join("\n"));
  assert.equal(editor.providers.length, 1);
  const document = await editor.open(path.join(folder, "new.py"), "python", "x = 1\ndef compute_area(wid");
  assert.deepEqual(await editor.ghost(document, 1, 20), ["th, height):"]);
  assert.match(status().tooltip, /^Suggesting/);
  const other = await editor.open(path.join(folder, "other.py"), "python", "zzz_unheard_of");
  assert.deepEqual(await editor.ghost(other, 0, 14), []);
  assert.equal(status().tooltip, "Nothing is shown: nothing is known that could follow");
});

test("settings are told to the server that runs", async () => {
  const document = editor.documents[0];
  await editor.set("threshold", 1);
  assert.deepEqual(await editor.ghost(document, 1, 20), []);
  assert.match(status().tooltip, /below the threshold 1\.00/);
  await editor.set("threshold", null);
  await editor.set("disabled", ["python"]);
  assert.deepEqual(await editor.ghost(document, 1, 20), []);
  assert.equal(status().tooltip, "Nothing is shown: it is switched off for python");
  await editor.set("disabled", []);
  assert.deepEqual(await editor.ghost(document, 1, 20), ["th, height):"]);
});

test("a file that is saved is known at once", async () => {
  const file = path.join(folder, "area.py");
  fs.writeFileSync(file, AREA.replace("width, height)", "width, depth)"));
  await editor.save(await editor.open(file, "python", "other"));
  assert.deepEqual(await editor.ghost(editor.documents[0], 1, 20), ["th, depth):"]);
});

test("off is off: no server runs, and nothing asks one", async () => {
  await editor.commands["mlxgpt.toggle"]();
  assert.equal(editor.settings.enabled, false);
  assert.equal(editor.providers.length, 0);
  assert.match(status().tooltip, /^Switched off: no server runs/);
  await editor.commands["mlxgpt.restart"]();
  assert.equal(editor.providers.length, 0);
  await editor.commands["mlxgpt.toggle"]();
  assert.deepEqual(await editor.ghost(editor.documents[0], 1, 20), ["th, depth):"]);
});

test("a program that is not there is said in the status bar", async () => {
  const path = editor.settings.path;
  await editor.set("path", "/nowhere/mlxgpt");
  assert.match(status().tooltip, /^\/nowhere\/mlxgpt could not be started/);
  assert.equal(editor.providers.length, 0);
  await editor.set("path", path);
  assert.equal(editor.providers.length, 1);
});
