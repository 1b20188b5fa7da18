// `mlxgpt lsp` in VS Code: starts and ends it, tells it the settings, and says why nothing is shown.

const { commands, window, workspace } = require("vscode");
const { LanguageClient, RevealOutputChannelOn, State } = require("vscode-languageclient/node");
const { command, preferences } = require("./settings");
const { Status } = require("./status");

const LOG = "window/logMessage";
const CONFIGURATION = "workspace/didChangeConfiguration";

const get = (name) => workspace.getConfiguration("mlxgpt").get(name);
const folder = () => workspace.workspaceFolders?.[0]?.uri.fsPath;

let client; // the server that runs, or is started
let output, status;
let queue = Promise.resolve(); // starts and ends come one after the other

/** The server that the settings name, not started yet. */
function make() {
  const server = { ...command(get, folder()), options: { cwd: folder() } };
  const made = new LanguageClient("mlxgpt", "mlxgpt", server, {
    documentSelector: [{ scheme: "file" }, { scheme: "untitled" }],
    initializationOptions: () => preferences(get),
    outputChannel: output,
    revealOutputChannelOn: RevealOutputChannelOn.Never,
    middleware: { provideInlineCompletionItems: provide },
  });
  made.onNotification(LOG, ({ message }) => {
    output.appendLine(message);
    status.logged(message);
  });
  made.onDidChangeState(({ newState }) => {
    if (newState === State.Stopped && made === client) status.failed("The server has ended");
  });
  return made;
}

/** Ask the server, but for a language that is off. */
async function provide(document, position, context, token, next) {
  if (get("disabled").includes(document.languageId)) {
    status.logged(`nothing is suggested: it is switched off for ${document.languageId}`);
    return null;
  }
  const found = await next(document, position, context, token);
  const items = Array.isArray(found) ? found : (found?.items ?? []);
  if (items.length) status.suggested();
  return found;
}

async function start() {
  if (client) return;
  if (!get("enabled")) return status.off();
  status.starting();
  client = make();
  try {
    await client.start();
    status.ready();
  } catch (error) {
    client = undefined;
    output.appendLine(String(error));
    status.failed(`${get("path")} could not be started: the setting mlxgpt.path says where it is`);
  }
}

async function stop() {
  const ended = client;
  client = undefined;
  await ended?.stop().catch((error) => output.appendLine(String(error)));
  await ended?.dispose().catch((error) => output.appendLine(String(error)));
  status.off();
}

const after = (...steps) => {
  for (const step of steps) queue = queue.then(step);
  return queue;
};

function configured(event) {
  const about = (...names) => names.some((name) => event.affectsConfiguration(`mlxgpt.${name}`));
  if (about("enabled", "path", "arguments")) return after(stop, start);
  if (about("disabled", "threshold", "multiline"))
    return after(() => client?.sendNotification(CONFIGURATION, { settings: preferences(get) }));
}

function toggle() {
  return workspace.getConfiguration("mlxgpt").update("enabled", !get("enabled"), true);
}

function activate(context) {
  output = window.createOutputChannel("mlxgpt", { log: true });
  status = new Status();
  context.subscriptions.push(
    output,
    status,
    commands.registerCommand("mlxgpt.toggle", toggle),
    commands.registerCommand("mlxgpt.restart", () => after(stop, start)),
    commands.registerCommand("mlxgpt.log", () => output.show()),
    workspace.onDidChangeConfiguration(configured),
  );
  return after(start);
}

function deactivate() {
  return after(stop);
}

module.exports = { activate, deactivate };
