// The user's settings -> the command that is started, and what the server is told.

const FOLDER = "${workspaceFolder}";

/** The program and its arguments. `get` reads a setting of mlxgpt's; `folder` is the path of the open folder, or none. */
function command(get, folder) {
  const given = get("arguments");
  const needs = (i) => given[i]?.includes(FOLDER);
  // An option goes with its value.
  const kept = given.filter((_, i) => folder || !(needs(i) || (needs(i + 1) && !given[i + 1].startsWith("-"))));
  const args = kept.map((word) => word.replaceAll(FOLDER, folder));
  return { command: get("path").replaceAll(FOLDER, folder ?? "."), args: ["lsp", ...args] };
}

/** What `mlxgpt lsp` takes as initialization options and as a changed configuration; null is what is not said. */
function preferences(get) {
  return { mlxgpt: { disabled: get("disabled"), threshold: get("threshold"), multiline: get("multiline") } };
}

module.exports = { command, preferences };
