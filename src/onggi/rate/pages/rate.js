// Keys, and a choice that survives a server or a network that is away for a while. The page works without.
(() => {
  "use strict";
  document.documentElement.classList.add("js");
  const PAUSE = 400; // ms in which a key that was meant for the last pair is not taken for this one
  let since = performance.now(), busy = false;

  const show = (page) => {
    const parsed = new DOMParser().parseFromString(page, "text/html");
    document.title = parsed.title;
    document.documentElement.lang = parsed.documentElement.lang;
    document.body.replaceChildren(...parsed.body.childNodes);
    document.querySelector("h1")?.focus({ preventScroll: true });
    scrollTo(0, 0);
    since = performance.now();
  };

  const send = async (form, button) => {
    if (busy) return;
    busy = true;
    document.body.setAttribute("aria-busy", "true");
    const body = new URLSearchParams(new FormData(form, button));
    for (let pause = 500; ; pause = Math.min(2 * pause, 8000)) {
      try {
        const answer = await fetch(form.action, { method: "POST", body, credentials: "same-origin", cache: "no-store" });
        if (answer.status < 500) {
          show(await answer.text());
          if (answer.redirected) history.replaceState(null, "", new URL(answer.url).pathname);
          break;
        }
      } catch {
        // the network's or the server's turn
      }
      const status = document.getElementById("status");
      status.textContent = status.dataset.wait;
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
    document.body.removeAttribute("aria-busy");
    busy = false;
  };

  addEventListener("submit", (event) => {
    event.preventDefault();
    send(event.target, event.submitter);
  });

  addEventListener("change", (event) => {
    if (event.target.id === "page") event.target.form.requestSubmit();
  });

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || event.isComposing) return;
    if (event.target.matches("input:not([type=checkbox]), select, textarea")) return;
    // By place where a keyboard has other letters there (Korean, Arabic): U is U.
    const digit = /^(?:Digit|Numpad)([1-4])$/.exec(event.code)?.[1] ?? (/^[1-4]$/.test(event.key) ? event.key : null);
    const button = digit
      ? document.querySelectorAll("#choices button")[digit - 1]
      : event.code === "KeyU" || event.key === "u" ? document.querySelector(".undo button") : null;
    if (!button || performance.now() - since < PAUSE) return;
    event.preventDefault();
    button.form.requestSubmit(button);
  });
})();
