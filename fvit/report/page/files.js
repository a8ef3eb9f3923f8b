// What the page carries, and what is kept of it.

const BYTES = (text) => Uint8Array.from(atob(text), (each) => each.charCodeAt(0));

// JSON that was compressed and written in base64.
export async function unpacked(text) {
  const stream = new Blob([BYTES(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// The panels of a strip of three, or null where there is none that this browser reads.
export async function panels(text) {
  if (!text) return null;
  try {
    const strip = await createImageBitmap(new Blob([BYTES(text)], { type: "image/webp" }));
    const width = strip.width / 3;
    return await Promise.all([0, 1, 2].map((place) => createImageBitmap(strip, place * width, 0, width, strip.height)));
  } catch {
    return null;
  }
}

// A word that a spreadsheet would take for a formula is given as a word.
export function csv(columns, rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value !== "string") return String(value);
    const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",") + "\n").join("");
}

export function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff" + text], { type: "text/csv;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
