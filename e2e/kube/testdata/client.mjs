// Lists, watches, reads a log and runs a command with @kubernetes/client-node, and prints what does not change from run to run.
//   client.mjs MODULES CONTEXT NAMESPACE
import { createRequire } from 'node:module';
import { PassThrough, Readable } from 'node:stream';
import { text } from 'node:stream/consumers';

const [modules, context, namespace] = process.argv.slice(2);
const k8s = createRequire(modules + '/')('@kubernetes/client-node');

const config = new k8s.KubeConfig();
config.loadFromDefault();
config.setCurrentContext(context);
const core = config.makeApiClient(k8s.CoreV1Api);

const pods = await core.listNamespacedPod({ namespace });
console.log('pods', pods.items.map((pod) => pod.metadata.name));
console.log('version', (await config.makeApiClient(k8s.VersionApi).getCode()).gitVersion);

await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'node' }, data: { n: '0' } } });
await new Promise((resolve, reject) => {
	let abort;
	const seen = async (type, object) => {
		const n = Number(object.data.n);
		console.log('event', type, n);
		if (n === 3) {
			abort.abort();
			resolve();
			return;
		}
		object.data.n = String(n + 1);
		await core.replaceNamespacedConfigMap({ namespace, name: 'node', body: object });
	};
	new k8s.Watch(config)
		.watch(`/api/v1/namespaces/${namespace}/configmaps`, { fieldSelector: 'metadata.name=node' }, (type, object) => seen(type, object).catch(reject), () => {})
		.then((controller) => { abort = controller; }, reject);
});
await core.deleteNamespacedConfigMap({ namespace, name: 'node' });

const log = new PassThrough();
const followed = text(log);
await new k8s.Log(config).log(namespace, 'web', 'main', log, { tailLines: 2, follow: true });
console.log('follow', (await followed).split('\n'));

const [out, err] = [new PassThrough(), new PassThrough()];
const [printed, complained] = [text(out), text(err)];
const status = await new Promise((resolve, reject) => {
	new k8s.Exec(config)
		.exec(namespace, 'web', 'main', ['sh', '-c', 'read line; echo "got $line"; echo err >&2; exit 7'], out, err, Readable.from(['hello\n']), false, resolve)
		.catch(reject);
});
out.end();
err.end();
console.log('exec', await printed, await complained, status.reason, status.details?.causes?.[0]?.message);

await core.readNamespacedPod({ namespace, name: 'missing' }).catch((e) => console.log('missing', e.code));
