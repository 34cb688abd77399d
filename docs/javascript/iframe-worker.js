// A page opened from disk may not start a worker: then the search runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = Object.assign(document.createElement("iframe"), { hidden: true, worker: this });
      frame.srcdoc = `<script>
        window.postMessage = (data) => frameElement.worker.dispatchEvent(new MessageEvent("message", { data }));
      <\/script><script src="${url}"><\/script>`;
      this.started = new Promise((resolve) => frame.addEventListener("load", () => resolve(frame.contentWindow)));
      document.documentElement.append(frame);
    }

    postMessage(data) {
      this.started.then((target) => target.dispatchEvent(new target.MessageEvent("message", { data })));
    }
  };
}
