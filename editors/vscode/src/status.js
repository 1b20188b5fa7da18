// The status bar: whether there are suggestions, and if not, why.

const { StatusBarAlignment, window } = require("vscode");

const NOTHING = "nothing is suggested: "; // as the server's log begins to say why

class Status {
  constructor() {
    this.item = window.createStatusBarItem("mlxgpt", StatusBarAlignment.Right, 100);
    this.item.name = "mlxgpt";
    this.item.command = "mlxgpt.toggle";
    this.item.show();
  }

  show(icon, tooltip) {
    this.item.text = `$(${icon}) mlxgpt`;
    this.item.tooltip = tooltip;
  }

  /** A line of the server's log. */
  logged(line) {
    if (line.startsWith(NOTHING)) this.show("circle-outline", `Nothing is shown: ${line.slice(NOTHING.length)}`);
  }

  starting() {
    this.show("loading~spin", "Starting");
  }

  suggested() {
    this.show("sparkle", "Suggesting; click to switch off");
  }

  ready() {
    this.show("sparkle", "Ready; click to switch off");
  }

  off() {
    this.show("circle-slash", "Switched off: no server runs; click to switch on");
  }

  failed(reason) {
    this.show("error", `${reason}. The log says more.`);
  }

  dispose() {
    this.item.dispose();
  }
}

module.exports = { Status };
