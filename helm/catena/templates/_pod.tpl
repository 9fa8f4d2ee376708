{{/* The pod of a room: metadata and spec, the same in a Deployment and a StatefulSet. */}}
{{- define "catena.pod" -}}
metadata:
  labels: {{- include "catena.labels" . | nindent 4 }}
    {{- with .room.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    checksum/config: {{ include "catena.room.config" . | sha256sum }}
    {{- with .room.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "catena.fullname" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .room.terminationGracePeriodSeconds }}
  securityContext: {{- include "catena.pod.security" .root | nindent 4 }}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- include "catena.placing" . | nindent 2 }}
  {{- if .facts.models }}
  initContainers:
    - {{- include "catena.models.container" . | nindent 6 }}
  {{- end }}
  containers:
    - {{- include "catena.container" . | nindent 6 }}
  volumes: {{- include "catena.volumes" . | nindent 4 }}
{{- end -}}

{{- define "catena.pod.security" -}}
runAsNonRoot: true
runAsUser: {{ .Values.security.user }}
runAsGroup: {{ .Values.security.user }}
fsGroup: {{ .Values.security.user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* On which nodes: GPUs bring their runtime class and toleration along; replicas spread over hosts and zones. */}}
{{- define "catena.placing" -}}
{{- $gpu := gt (int .room.gpu.count) 0 -}}
{{- if and $gpu .room.gpu.runtimeClassName }}
runtimeClassName: {{ .room.gpu.runtimeClassName }}
{{- end }}
{{- with .room.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with merge (dict) .room.nodeSelector (ternary .room.gpu.nodeSelector (dict) $gpu) }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat .room.tolerations (ternary .room.gpu.tolerations (list) $gpu) }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .room.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "catena.selector" $ | nindent 8 }}
  {{- end }}
{{- end -}}

{{- define "catena.volumes" -}}
- name: config
  configMap: {name: {{ include "catena.room.fullname" . }}}
- name: tmp
  emptyDir: {sizeLimit: {{ .room.tmpSize }}}
{{- with .facts.signing }}
- name: signing
  secret:
    secretName: {{ include "catena.secretName" $.root }}
    defaultMode: 0440
    items:
      {{- range . }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- if .room.sharedMemory }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .room.sharedMemory }}}
{{- end }}
{{- if not (include "catena.room.stateful" .) }}
- name: home
  emptyDir: {sizeLimit: {{ .room.persistence.size }}}
{{- end }}
{{- if and .facts.models .root.Values.models.existingClaim }}
- name: models
  persistentVolumeClaim: {claimName: {{ .root.Values.models.existingClaim }}, readOnly: true}
{{- else if .facts.models }}
- name: models
  emptyDir: {sizeLimit: {{ .root.Values.models.size }}}
{{- end }}
{{- end -}}

{{/* Before a room starts, its model files are compared with their SHA256SUMS; from an image they are copied first. */}}
{{- define "catena.models.container" -}}
name: models
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- if .root.Values.models.existingClaim }}
image: {{ include "catena.room.image" . }}
command: [/bin/sh, -euc, "cd /models && sha256sum --check --strict --quiet SHA256SUMS"]
{{- else }}
image: {{ include "catena.image" (dict "root" .root "image" .root.Values.models.image "repository" "") }}
command: [/bin/sh, -euc, "cp -R /catena-models/. /models && cd /models && sha256sum --check --strict --quiet SHA256SUMS"]
{{- end }}
resources: {{- toYaml .root.Values.models.resources | nindent 2 }}
securityContext: {{- include "catena.container.security" . | nindent 2 }}
volumeMounts:
  - {name: models, mountPath: /models{{ if .root.Values.models.existingClaim }}, readOnly: true{{ end }}}
{{- end -}}
