# Lists, watches, reads a log and runs a command with Python's kubernetes, and prints what does not change from run to run.
#   client.py CONTEXT NAMESPACE
import sys

from kubernetes import client, config, watch
from kubernetes.stream import stream

context, namespace = sys.argv[1:]
config.load_kube_config(context=context)
core = client.CoreV1Api()

print('pods', [pod.metadata.name for pod in core.list_namespaced_pod(namespace).items])
print('version', client.VersionApi().get_code().git_version)

core.create_namespaced_config_map(namespace, {'metadata': {'name': 'python'}, 'data': {'n': '0'}})
seen = watch.Watch()
for event in seen.stream(core.list_namespaced_config_map, namespace, field_selector='metadata.name=python', timeout_seconds=30):
    n = int(event['object'].data['n'])
    print('event', event['type'], n)
    if n == 3:
        seen.stop()
    else:
        core.patch_namespaced_config_map('python', namespace, {'data': {'n': str(n + 1)}})
core.delete_namespaced_config_map('python', namespace)

print('log', core.read_namespaced_pod_log('web', namespace, container='main', tail_lines=2))
followed = watch.Watch().stream(core.read_namespaced_pod_log, 'web', namespace, container='main', tail_lines=1)
print('follow', list(followed))

print('exec', sorted(stream(core.connect_get_namespaced_pod_exec, 'web', namespace, container='main', command=['sh', '-c', 'echo out; echo err >&2'],
                            stdin=False, stdout=True, stderr=True, tty=False).splitlines()))
talk = stream(core.connect_get_namespaced_pod_exec, 'web', namespace, container='main', command=['sh', '-c', 'read line; echo "got $line"; exit 7'],
              stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False)
talk.write_stdin('hello\n')
talk.run_forever(timeout=20)
print('talk', talk.read_stdout().strip(), talk.returncode)

try:
    core.read_namespaced_pod('missing', namespace)
except client.ApiException as e:
    print('missing', e.status, e.reason)
