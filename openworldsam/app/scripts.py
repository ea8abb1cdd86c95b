"""JavaScript and CSS of the page, beyond what Gradio brings."""

SAVE_SCRIPT = """(file) => {
    if (!file) return;
    const bytes = Uint8Array.from(atob(file.content), (letter) => letter.charCodeAt(0));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes], {type: "application/zip"}));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}"""
"""Saves the content of the server's answer, so that no result has to wait on the server's disk for a download."""

SETUP_SCRIPT = """() => {
    const status = document.querySelector("#message"), canvas = document.querySelector("#canvas");
    status.setAttribute("role", "status");
    status.setAttribute("aria-live", "polite");
    const name = "The image: arrow keys move a cross (with Shift further), Enter clicks there";
    const describe = () => canvas.querySelector("img")?.closest("button")?.setAttribute("aria-label", name);
    new MutationObserver(describe).observe(canvas, {childList: true, subtree: true});

    const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Enter: [0, 0]};
    const cross = document.createElement("div");
    cross.id = "cross";
    let place = [0.5, 0.5];  // x, y as parts of the image
    canvas.addEventListener("keydown", (event) => {
        const image = event.target.querySelector("img"), step = steps[event.key];
        if (!image || !step) return;
        event.preventDefault();
        place = place.map((part, axis) => Math.min(1, Math.max(0, part + step[axis] * (event.shiftKey ? 0.1 : 0.02))));
        const box = image.getBoundingClientRect(), size = [image.naturalWidth, image.naturalHeight];
        const scale = Math.min(box.width / size[0], box.height / size[1]);
        const x = box.left + box.width / 2 + (place[0] - 0.5) * size[0] * scale;
        const y = box.top + box.height / 2 + (place[1] - 0.5) * size[1] * scale;
        cross.style.left = `${x}px`;
        cross.style.top = `${y}px`;
        document.body.append(cross);
        if (event.key !== "Enter") return;
        image.dispatchEvent(new MouseEvent("click", {bubbles: true, clientX: x, clientY: y}));
    });
    canvas.addEventListener("focusout", () => cross.remove());
}"""
"""Lets screen readers announce the message, and the keyboard click on the image."""

CSS = """
#message .prose { white-space: pre-line; }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)); }
#examples .caption-label { font-size: 11px; padding: 0 3px; max-width: 100%; }
#cross { position: fixed; width: 20px; height: 20px; margin: -10px; border: 2px solid white; border-radius: 50%;
    outline: 2px solid black; pointer-events: none; z-index: 1000; }
#examples, #examples .grid-wrap { height: auto !important; min-height: 0; }
@media (max-width: 640px) {
    #canvas:not(:has(img)) { height: 140px !important; }
    #canvas:not(:has(img)) .empty { height: 100%; min-height: 0; }
    #table th *, #table td * { font-size: 11px !important; white-space: normal !important; }
    #table .cell-wrap, #table .header-content { padding: 4px !important; }
}
"""
