// Timers, a worker thread, files and a child process that check each other while they are saved and brought back.
//
// Argument: the port. GET /check answers "good", or what went wrong first; GET /rounds answers how often each
// of them went round; any other GET answers a sum, POST n adds n to it.
'use strict';
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const { spawn } = require('child_process');
const fs = require('fs');
const http = require('http');

const rounds = { timer: 0, worker: 0, child: 0, file: 0, heap: 0 };
let wrong = null;
let sum = 0;

function expect(holds, what) {
  if (!holds && wrong === null) wrong = what;
}

// A thread with a heap of its own: it answers each number and adds it up in memory that both see.
function worker() {
  const shared = new BigInt64Array(workerData);
  parentPort.on('message', (n) => {
    Atomics.add(shared, 0, BigInt(n));
    parentPort.postMessage(n);
  });
}

function askWorker(ready) {
  const memory = new SharedArrayBuffer(8);
  const shared = new BigInt64Array(memory);
  const other = new Worker(__filename, { workerData: memory });
  let next = 1;
  other.on('message', (n) => {
    expect(n === next, `the worker answered ${n} instead of ${next}`);
    const all = (BigInt(n) * BigInt(n + 1)) / 2n;
    expect(Atomics.load(shared, 0) === all, `the worker added up to ${Atomics.load(shared, 0)}, not ${all}`);
    rounds.worker += 1;
    if (next === 1) ready();
    next += 1;
    setTimeout(() => other.postMessage(next), 1);
  });
  other.on('exit', (code) => expect(false, `the worker ended: ${code}`));
  other.postMessage(next);
}

// What `cat` is told comes back.
function askChild() {
  const child = spawn('cat', [], { stdio: ['pipe', 'pipe', 'inherit'] });
  let [next, rest] = [0, ''];
  child.stdout.on('data', (data) => {
    const lines = (rest + data).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      expect(line === String(next), `the child answered ${line} instead of ${next}`);
      rounds.child += 1;
      next += 1;
      setTimeout(() => child.stdin.write(`${next}\n`), 1);
    }
  });
  child.on('exit', (code) => expect(false, `the child ended: ${code}`));
  child.stdin.write('0\n');
}

// Files go through the threads of libuv.
async function useFile() {
  const file = await fs.promises.open('/tmp/busy', 'w+');
  for (let n = 0; ; n += 1) {
    const text = `${n}`.padStart(20);
    await file.write(text, (n % 50) * 20);
    const { buffer } = await file.read(Buffer.alloc(20), 0, 20, (n % 50) * 20);
    expect(buffer.toString() === text, `the file holds ${buffer} instead of ${text}`);
    rounds.file += 1;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

// Time never goes backwards; garbage is made, and code hot enough to be compiled.
function useTimers() {
  let last = process.hrtime.bigint();
  setInterval(() => {
    const now = process.hrtime.bigint();
    expect(now >= last, `the time went back from ${last} to ${now}`);
    last = now;
    rounds.timer += 1;
  }, 2);
  setInterval(() => {
    const kept = new Map();
    for (let n = 0; n < 1000; n += 1) kept.set(`${n}`, { n, list: [n, n + 1] });
    let all = 0;
    for (const [key, one] of kept) all += one.n === Number(key) && one.list[1] === one.n + 1 ? one.n : NaN;
    expect(all === (1000 * 999) / 2, `the map added up to ${all}`);
    rounds.heap += 1;
  }, 5);
}

function answer(request, response, body) {
  if (request.method === 'POST') sum += Number(body);
  if (request.url === '/check') return response.end(wrong === null ? 'good' : wrong);
  if (request.url === '/rounds') return response.end(Object.values(rounds).join(' '));
  return response.end(String(sum));
}

function main() {
  useTimers();
  // A thread in the making has /proc/self/maps open, which a child of that moment would inherit for good.
  askWorker(askChild);
  useFile().catch((why) => expect(false, `the file: ${why}`));
  const server = http.createServer((request, response) => {
    let body = '';
    request.on('data', (data) => { body += data; });
    request.on('end', () => answer(request, response, body));
  });
  server.listen(Number(process.argv[2]), '127.0.0.1');
}

if (isMainThread) main();
else worker();
