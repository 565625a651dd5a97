/** The state of a page, in one place: views read it, and are told when it changes. */

/**
 * `set(changes)` changes fields, and then calls each function given to `watch` that named one of
 * them. `state` is the object with the fields as they are now.
 */
export function createStore(state) {
  const watchers = [];
  return {
    state,
    set(changes) {
      const changed = Object.keys(changes).filter((name) => state[name] !== changes[name]);
      Object.assign(state, changes);
      for (const { names, run } of watchers) {
        if (names.some((name) => changed.includes(name))) run(state);
      }
    },
    /** Calls `run` now, and whenever one of `names` changes. */
    watch(names, run) {
      watchers.push({ names, run });
      run(state);
    },
  };
}
