// As much of VS Code's API as the extension and vscode-languageclient use, with what a test may look at.

const path = require("node:path");
const { pathToFileURL, fileURLToPath } = require("node:url");

class Emitter {
  listeners = new Set();
  event = (listener, self) => {
    const bound = self ? listener.bind(self) : listener;
    this.listeners.add(bound);
    return { dispose: () => this.listeners.delete(bound) };
  };
  async fire(value) {
    for (const listener of [...this.listeners]) await listener(value);
  }
  dispose() {
    this.listeners.clear();
  }
}

class Position {
  constructor(line, character) {
    Object.assign(this, { line, character });
  }
  isEqual(other) {
    return this.line === other.line && this.character === other.character;
  }
}

class Range {
  constructor(...given) {
    const [a, b] = given.length === 4 ? [new Position(given[0], given[1]), new Position(given[2], given[3])] : given;
    Object.assign(this, { start: a, end: b });
  }
}

class Uri {
  constructor(text) {
    this.text = text;
    this.scheme = text.split(":")[0];
  }
  static parse = (text) => new Uri(text);
  static file = (name) => new Uri(String(pathToFileURL(name)));
  get fsPath() {
    return fileURLToPath(this.text);
  }
  get path() {
    return new URL(this.text).pathname;
  }
  with() {
    return this;
  }
  toString() {
    return this.text;
  }
}

class CancellationTokenSource {
  #emitter = new Emitter();
  token = { isCancellationRequested: false, onCancellationRequested: this.#emitter.event };
  cancel() {
    this.token.isCancellationRequested = true;
    this.#emitter.fire();
  }
  dispose() {}
}

class InlineCompletionItem {
  constructor(insertText, range, command) {
    Object.assign(this, { insertText, range, command });
  }
}

class InlineCompletionList {
  constructor(items) {
    this.items = items;
  }
}

class Disposable {
  constructor(dispose) {
    this.dispose = dispose ?? (() => {});
  }
}

const opened = new Emitter(), edited = new Emitter(), saved = new Emitter(), closed = new Emitter();
const configured = new Emitter();
const silent = new Emitter();

/** What the test sets and sees. */
const editor = { settings: {}, providers: [], commands: {}, items: [], log: [], documents: [], configured };

editor.open = async (name, languageId, text) => {
  const document = {
    uri: Uri.file(name), fileName: name, languageId, version: 1, isClosed: false, isDirty: false, getText: () => text,
  };
  editor.documents.push(document);
  await opened.fire(document);
  return document;
};
editor.save = (document) => saved.fire(document);
editor.set = async (name, value) => {
  editor.settings[name] = value;
  await configured.fire({ affectsConfiguration: (section) => section === `mlxgpt.${name}` });
};
/** Ghost text as VS Code asks each provider for it. */
editor.ghost = async (document, line, character) => {
  const { token } = new CancellationTokenSource();
  const found = await Promise.all(
    editor.providers.map((p) => p.provideInlineCompletionItems(document, new Position(line, character), { triggerKind: 1 }, token)),
  );
  return found.flatMap((each) => (Array.isArray(each) ? each : (each?.items ?? []))).map((item) => item.insertText);
};

const channel = (name, options) => ({
  ...(options?.log && { logLevel: 1, onDidChangeLogLevel: silent.event }),
  append: (text) => editor.log.push(text),
  appendLine: (text) => editor.log.push(text),
  ...Object.fromEntries(["trace", "debug", "info", "warn", "error"].map((kind) => [kind, (text) => editor.log.push(String(text))])),
  clear() {}, show() {}, hide() {}, dispose() {}, replace() {},
});

const own = {
  __esModule: true, // else it would be copied, name by name
  editor, Position, Range, Uri, CancellationTokenSource, InlineCompletionItem, InlineCompletionList, Disposable,
  EventEmitter: Emitter,
  version: "1.106.0",
  env: { language: "en", appName: "test", appHost: "desktop" },
  InlineCompletionTriggerKind: { Invoke: 0, Automatic: 1 },
  StatusBarAlignment: { Left: 1, Right: 2 },
  workspace: {
    get textDocuments() {
      return editor.documents;
    },
    workspaceFolders: undefined,
    notebookDocuments: [],
    isTrusted: true,
    getConfiguration: (section) => ({
      get: (name, other) => (section === "mlxgpt" ? editor.settings[name] : other),
      update: (name, value) => editor.set(name, value),
      has: () => false,
      inspect: () => undefined,
    }),
    onDidChangeConfiguration: configured.event,
    onDidOpenTextDocument: opened.event,
    onDidChangeTextDocument: edited.event,
    onDidSaveTextDocument: saved.event,
    onDidCloseTextDocument: closed.event,
    createFileSystemWatcher: () => ({ onDidCreate: silent.event, onDidChange: silent.event, onDidDelete: silent.event, dispose() {} }),
    getWorkspaceFolder: () => own.workspace.workspaceFolders?.[0],
    asRelativePath: (uri) => path.basename(String(uri)),
    fs: {},
  },
  window: {
    activeTextEditor: undefined,
    visibleTextEditors: [],
    tabGroups: { all: [], onDidChangeTabs: silent.event, onDidChangeTabGroups: silent.event },
    createOutputChannel: channel,
    createStatusBarItem: () => {
      const item = { show() {}, dispose() {} };
      editor.items.push(item);
      return item;
    },
    showErrorMessage: async (text) => void editor.log.push(text),
    showWarningMessage: async (text) => void editor.log.push(text),
    showInformationMessage: async (text) => void editor.log.push(text),
  },
  commands: {
    registerCommand: (name, run) => {
      editor.commands[name] = run;
      return { dispose: () => delete editor.commands[name] };
    },
    executeCommand: async () => {},
  },
  languages: {
    match: () => 10,
    createDiagnosticCollection: () => ({ set() {}, delete() {}, clear() {}, dispose() {} }),
    registerInlineCompletionItemProvider: (_, provider) => {
      editor.providers.push(provider);
      return { dispose: () => editor.providers.splice(editor.providers.indexOf(provider), 1) };
    },
  },
};

/** Classes that are only extended or compared with, and enumerations that are only read, are made when asked for. */
const made = (name) => ({ [name]: class {} })[name];
const events = (object) => new Proxy(object, {
  get: (target, name) => (name in target ? target[name] : /^on(Did|Will)/.test(name) ? silent.event : undefined),
});
own.workspace = events(own.workspace);
own.window = events(own.window);
module.exports = new Proxy(own, {
  get(target, name) {
    if (!(name in target) && typeof name === "string" && /^[A-Z]/.test(name)) target[name] = made(name);
    return target[name];
  },
});
