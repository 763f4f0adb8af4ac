// Browsers start no workers for pages opened from a file. There, an invisible frame runs the search's worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      const waiting = [];
      this.send = (data) => waiting.push(data);
      // What the worker posts arrives at this object, what is posted to this object arrives at the worker.
      inside.postToPage = (data) => {
        const message = new MessageEvent("message", { data });
        this.dispatchEvent(message);
        this.onmessage?.(message);
      };
      inside.loaded = () => {
        this.send = (data) => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
        waiting.forEach(this.send);
      };
      const address = new URL(url, location.href);
      const before = `
        window.postMessage = postToPage;
        window.importScripts = (...names) => names.reduce((earlier, name) => earlier.then(() => new Promise((done, failed) => {
          const script = document.createElement("script");
          script.src = new URL(name, ${JSON.stringify(address.href)});
          script.onload = done;
          script.onerror = failed;
          document.body.append(script);
        })), Promise.resolve());`;
      inside.document.open();
      inside.document.write(`<body><script>${before}</script><script src="${address}" onload="loaded()"></script></body>`);
      inside.document.close();
      this.terminate = () => frame.remove();
    }
    postMessage(data) {
      this.send(data);
    }
  };
}
